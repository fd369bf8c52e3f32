"""Communication between ranks: the only package that makes process groups or calls collectives."""
