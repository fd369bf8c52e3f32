"""How quick this machine is in one way or another."""
