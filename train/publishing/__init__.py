"""Trained networks -> weights/faces as it is published: small files, card, checksums, examples, pictures."""
