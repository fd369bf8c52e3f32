"""Stages of a request: encode, denoise and decode, each run by one group of ranks."""
