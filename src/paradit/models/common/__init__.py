"""Code that all model families share: loading, layers, schedulers, prompts, patched forwards, decoding."""
