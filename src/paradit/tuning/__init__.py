"""Measurements that find the fastest form of attention on this machine, and a file that stores results."""
