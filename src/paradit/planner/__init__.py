"""Planner: predicts the time and memory of a run before any model is loaded. Imports no torch.

It holds the performance figures of known devices and links as data, the cost formulas, a simulator of the
run, and the search for the best execution plan.
"""
