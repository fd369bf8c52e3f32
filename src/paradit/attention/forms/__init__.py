"""Forms of attention, such as Ulysses and ring, one module each: description, options, checks. No torch."""
