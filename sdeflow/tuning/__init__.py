"""Choosing the numbers of blocks, h, eta and gamma, from the curvature that they see."""
