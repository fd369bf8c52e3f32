"""Declarations of all commands: the options of each, and the name of the function that carries it out.

Imports little else, so that `--help` is quick.
"""
