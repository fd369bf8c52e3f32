"""The world of the bundled model: one shape on a background, in motion (drawing, prompts, evaluator)."""
