"""Encode, denoise, decode: what one group of ranks does with one request."""
