"""Command line of ParaDiT: thin commands, each of which calls one function of the package."""
