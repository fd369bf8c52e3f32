"""Engine: starts the ranks of a run, sends them requests, and restarts them if one fails."""
