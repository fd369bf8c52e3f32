"""Model families, one folder each, and what is known about a model without loading it."""
