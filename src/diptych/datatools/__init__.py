"""Work on image-text data outside of training: inspect it, write it as shards, split it, time its loading.

Functions for programs; ``diptych data`` is the command line over them. Nothing here trains or encodes.
"""
