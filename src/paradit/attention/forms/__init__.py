"""Forms of attention, one module each: what each is, offers and refuses. Imports no torch."""
