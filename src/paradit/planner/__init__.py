"""Planner: predicts the time and memory of a run before any model is loaded. Imports no torch.

It holds the performance figures of known devices and links as data, formulas for the cost of operations, a
simulator of runs, and the search for the best execution plan.
"""
