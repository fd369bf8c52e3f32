"""Shapes world of the bundled model: one moving shape on a background (drawing, prompts, evaluator)."""
