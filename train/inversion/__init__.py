"""The paper's encoder for any EG3D-shaped generator: its rounds, losses and weights (sections 3.2, 3.3 and A.1)."""
