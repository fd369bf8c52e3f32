"""Decisions on which work runs on which rank, and in which order. Pure functions: no torch, no clock."""
