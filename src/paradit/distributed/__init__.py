"""The only place that makes process groups or calls collectives."""
