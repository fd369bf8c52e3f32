"""Measurements by which the fastest settings on this machine are chosen, and a file that remembers them."""
