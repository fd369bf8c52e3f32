"""Helpers for the parts of a transformer that run without communication between ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

F = TypeVar("F", bound=Callable[..., object])
M = TypeVar("M", bound=Module)


class HasHeads(Protocol):
    """Interface of attention modules of any class that have a number of heads."""

    @property
    def heads(self) -> int: ...


def maybe_compiled(piece: F, compile: bool) -> F:
    """Return `piece`, compiled by `torch.compile` if `compile`, once for all layers and steps of one shape.

    A piece is a function of a module and tensors: because the weights are its inputs, other layers need no
    compilation of their own.
    """
    return torch.compile(piece, dynamic=False) if compile else piece  # type: ignore[return-value]


def heads(x: Tensor, attn: HasHeads) -> Tensor:
    """Reshape [B, S, width] to [B, S, H, D], with the number of heads of an attention module."""
    # The head dim is computed, because -1 would be ambiguous on a rank that holds no tokens.
    return x.view(*x.shape[:2], attn.heads, x.shape[2] // attn.heads)


def of_class(kind: type[M], modules: ModuleList) -> list[M]:
    """Return the modules of a list after a check that they are all of one class."""
    found = [module for module in modules if isinstance(module, kind)]
    assert len(found) == len(modules), f"not all are a {kind.__name__}"
    return found
