"""A transformer's pieces: regions without communication, the same for every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

F = TypeVar("F", bound=Callable[..., object])
M = TypeVar("M", bound=Module)


class HasHeads(Protocol):
    """An attention module, of whichever class."""

    @property
    def heads(self) -> int: ...


def maybe_compiled(piece: F, compile: bool) -> F:
    """As it is, or `torch.compile`d, once for all layers and steps of one shape.

    A piece is a function of a module and tensors: its weights are then inputs, and other layers need no
    compilation of their own.
    """
    return torch.compile(piece, dynamic=False) if compile else piece  # type: ignore[return-value]


def heads(x: Tensor, attn: HasHeads) -> Tensor:
    """[B, S, width] as [B, S, H, D], with as many heads as an attention module has."""
    # -1 for the head dim would be ambiguous for a rank that holds no tokens.
    return x.view(*x.shape[:2], attn.heads, x.shape[2] // attn.heads)


def of_class(kind: type[M], modules: ModuleList) -> list[M]:
    """Return a list's modules, which are all of one class."""
    found = [module for module in modules if isinstance(module, kind)]
    assert len(found) == len(modules), f"not all are a {kind.__name__}"
    return found
