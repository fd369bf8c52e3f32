"""HunyuanVideo from text, over diffusers' classes."""
