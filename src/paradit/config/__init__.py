"""What can be asked for, and how it is declared, read and checked. Torch-free."""
