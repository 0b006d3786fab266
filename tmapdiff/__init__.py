"""Diffusion over 2D temporal maps."""
