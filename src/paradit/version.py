"""Version of ParaDiT."""

__version__ = "0.2.0"
