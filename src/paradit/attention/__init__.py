"""Attention on one or many ranks: from a transformer block's queries, keys and values to attended values."""
