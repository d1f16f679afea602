"""The inversion manifold and the directions in it (section 3.4): candidates, boundaries, calibration."""
