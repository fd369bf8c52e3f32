"""Engine: starts the ranks of a run, gives them requests, and restarts them if one fails."""
