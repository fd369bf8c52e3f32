"""What each command takes: its options, and the name of the function that carries it out.

Imports little else, so `--help` is quick.
"""
