"""Supported model families, one folder each, and what can be read of a model without loading it."""
