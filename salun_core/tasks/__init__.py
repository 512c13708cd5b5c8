"""Trained models with what they should forget and keep, and their losses."""

FROM_SCRATCH = ("classification", "diffusion")
"""Kinds of task whose networks can be trained from scratch; that of text-to-image was trained by others."""
