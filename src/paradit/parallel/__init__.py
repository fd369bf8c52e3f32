"""Predictions of a denoising step, by one process alone or by several ranks together."""
