"""Denoising methods: what each can do, checks and shows. Torch-free; `paradit.sampling` runs them."""
