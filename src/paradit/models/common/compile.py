"""Compilation and other functions for parts of a transformer that run on one rank, without communication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

F = TypeVar("F", bound=Callable[..., object])
M = TypeVar("M", bound=Module)


class HasHeads(Protocol):
    """Interface of any attention module that states its number of heads."""

    @property
    def heads(self) -> int: ...


def maybe_compiled(piece: F, compile: bool) -> F:
    """Return `piece`, a function of a module and tensors, compiled by `torch.compile` if `compile` is set.

    The weights are inputs of the compiled function, so one compilation serves all layers and steps with the
    same shapes.
    """
    return torch.compile(piece, dynamic=False) if compile else piece  # type: ignore[return-value]


def heads(x: Tensor, attn: HasHeads) -> Tensor:
    """Reshape [B, S, width] to [B, S, H, D], with the number of heads of an attention module."""
    # The head dim is computed, because -1 would be ambiguous on a rank that holds no tokens.
    return x.view(*x.shape[:2], attn.heads, x.shape[2] // attn.heads)


def of_class(kind: type[M], modules: ModuleList) -> list[M]:
    """Return the modules of a ModuleList as a list, after asserting that all are instances of `kind`."""
    found = [module for module in modules if isinstance(module, kind)]
    assert len(found) == len(modules), f"not all are a {kind.__name__}"
    return found
