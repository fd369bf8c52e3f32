"""Processes: who starts them, what each does, and what happens when one ends too soon."""
