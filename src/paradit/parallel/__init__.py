"""Several ranks that predict together, and one that does it alone."""
