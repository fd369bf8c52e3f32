"""Imported once by the fork server, so that every rank starts with torch and diffusers already there.

It must start no thread and no process group: neither survives a fork.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import diffusers  # noqa: F401
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel  # noqa: F401

torch.set_num_threads(1)
