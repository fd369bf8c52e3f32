"""The model families, one folder each, and what is known of a model without loading it."""
