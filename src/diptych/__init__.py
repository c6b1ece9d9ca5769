"""Diptych: one toolkit for the whole life of a CLIP-style model, on any PyTorch accelerator."""

__version__ = "0.1.0"
