"""Requests, placements and options: how they are declared, read and checked. Torch-free."""
