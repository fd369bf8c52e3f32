"""Compiling a transformer's pieces: regions without communication, the same for every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

F = TypeVar("F", bound=Callable[..., object])


def maybe_compiled(piece: F, compile: bool) -> F:
    """As it is, or `torch.compile`d, once for all layers and steps of one shape.

    A piece is a function of a module and tensors: its weights are then inputs, and other layers need no
    compilation of their own.
    """
    return torch.compile(piece, dynamic=False) if compile else piece  # type: ignore[return-value]
