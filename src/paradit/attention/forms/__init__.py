"""Attention forms, one module each: description, options and refusals. Imports no torch."""
