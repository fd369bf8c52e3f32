"""Open-Sora-Plan v1.3: its sizes only, for the planner; ParaDiT does not run it."""
