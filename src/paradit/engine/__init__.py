"""Engine: starts the ranks of a run, sends them requests, and restarts the ranks if one of them fails."""
