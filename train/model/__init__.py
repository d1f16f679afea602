"""Generator and encoder of the bundled model: trained together, then sharpened, given a back, and a feedback step."""
