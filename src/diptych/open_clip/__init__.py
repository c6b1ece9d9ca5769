"""A drop-in for open_clip."""
