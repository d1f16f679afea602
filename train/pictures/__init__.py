"""e4e in two dimensions (paper, section 4.3 and Table 5): a small StyleGAN2 of photos, an encoder into its W+, and
what directions of either space do to held-out photos."""
