"""What every rank does, and when: recorded by each, merged to one file, and summed up. Torch-free."""
