"""Loops over a model: they know latents and timesteps, not processes or files."""
