"""Imported once by the fork server, so that every rank starts with torch and diffusers already there.

It must start no thread and no process group: neither survives a fork.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

import paradit.models.hunyuan_video.adapter
import paradit.models.wan.adapter  # noqa: F401 (brings diffusers)

torch.set_num_threads(1)
