"""Denoising loops, which know models, latents and timesteps, but no processes or files."""
