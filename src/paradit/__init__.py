"""ParaDiT: video generation with diffusion transformers, on one or many GPUs."""

__version__ = "0.1.0"
