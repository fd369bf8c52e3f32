"""Version of ParaDiT."""

__version__ = "0.1.0"
