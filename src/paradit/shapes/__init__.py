"""Shapes world: the simple videos that the bundled model makes, of one moving shape on a background.

Holds the code that draws such videos, describes them by prompts and evaluates them.
"""
