"""Traces: each rank records what it does and when, and the records are merged and summed up. Torch-free."""
