"""Denoising methods: what each can do, and how it checks requests. Torch-free; `sampling` runs them."""
