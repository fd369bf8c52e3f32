"""What all model families share: loading, layers, schedulers, prompts, replaced forwards, decoding."""
