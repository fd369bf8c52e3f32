"""Transformer predictions of a denoising step, computed by one process or by several ranks together."""
