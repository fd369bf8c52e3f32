"""Which work runs where, and in which order: pure decisions, without torch and without a clock."""
