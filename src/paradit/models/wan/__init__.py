"""Wan 2.1, Wan 2.2 A14B and Wan 2.2 TI2V-5B, over diffusers' classes."""
