"""A form of attention that ParaDiT does not have."""
