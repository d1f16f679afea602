"""Real photos: raw ones become packed or posed crops; their labels; the networks that find faces in them."""
