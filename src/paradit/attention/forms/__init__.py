"""Forms of attention, such as Ulysses and ring: one module each, with its options and checks. No torch."""
