"""Shapes world: the simple videos that the bundled model makes, of one moving shape on a background.

Holds their drawing, prompts and evaluator.
"""
