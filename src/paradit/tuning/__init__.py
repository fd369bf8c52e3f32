"""Measurements that find the fastest settings on this machine, and a file that remembers them."""
