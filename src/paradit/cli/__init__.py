"""Command line of ParaDiT: thin commands, each of which checks its options and calls one function."""
