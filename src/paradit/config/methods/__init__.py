"""Denoising methods: what each can do, and how each checks requests. Torch-free; `sampling` runs them."""
