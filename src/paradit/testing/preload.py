"""Imports for multiprocessing's fork server, so that every test rank starts with torch and diffusers loaded.

This module must start no thread and no process group, because neither survives a fork.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, which reads it

from importlib import import_module

import torch

from paradit.models.registry import FAMILIES

for family in FAMILIES.all():
    import_module(family.module)  # brings diffusers
torch.set_num_threads(1)
