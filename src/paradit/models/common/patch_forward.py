"""Patches for `parallelize`, which make a diffusers transformer's `forward` run ParaDiT's code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import update_wrapper
from types import MethodType
from typing import cast

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils.peft_utils import apply_lora_scale
from torch import Tensor
from torch.nn import Module

from paradit.attention.base import Kernel
from paradit.config.errors import InputError
from paradit.config.plugins import imported
from paradit.models.common.attachments import Opened, is_own, name_of
from paradit.models.protocol import Transformer
from paradit.models.registry import FAMILIES

Predict = Callable[[Tensor, Tensor, tuple[Tensor | None, ...]], Tensor]
"""Type of a function that computes the transformer's prediction.

Its arguments are the latents [B, C, F, H, W], the timestep, and the arguments of `SplitTransformer.context`.
"""

Output = Transformer2DModelOutput | tuple[Tensor]
"""Type of a prediction as diffusers' transformers return it: an output object or a tuple."""


@dataclass(frozen=True, kw_only=True)
class ForwardPatch:
    """Functions with which a model family splits its transformers and patches their `forward`."""

    opened: Opened
    cut: Callable[[Module, Kernel], Transformer]
    """Function (module, kernel) -> split transformer, which splits a transformer module at its attention.

    `kernel` computes the attention that ranks do not share, such as cross-attention.
    """
    forward: Callable[[Predict], Callable[..., Output]]
    """Function that takes a `Predict` and returns a substitute for the `forward` of the transformer's class.

    The substitute takes the same arguments as that `forward`.
    """

    def put_in_place(self, module: Module, predict: Predict) -> Callable[[], None]:
        """Patch a module so that calling it calls `predict`; return a function that removes the patch.

        If the module has hooks of accelerate, they still run around the patch. predict: the function that
        computes the transformer's prediction.
        """
        replaced = _PatchedForward(module, self.forward(predict))
        setattr(module, _slot(module), replaced)

        def undo() -> None:
            replaced.active = False  # wrappers added since then now reach the module's own forward
            if vars(module).get("_old_forward") is replaced:
                vars(module)["_old_forward"] = replaced.own
            if vars(module).get("forward") is replaced:
                del module.forward

        return undo


def check_free(module: Module, name: str) -> None:
    """Raise InputError if a module's `forward` is patched already.

    name: the module's name in the error message.
    """
    forward = vars(module).get(_slot(module))
    if isinstance(forward, _PatchedForward):
        if forward.active:
            raise InputError(f"{name} is parallelized already: call what parallelize returned first")
    elif forward is not None and not is_own(module, forward):
        raise InputError(
            f"parallelize does not support {name_of(forward)} in place of the forward of {name}: "
            "put diffusers' own back"
        )


def refuse(attention_kwargs: Mapping[str, object] | None) -> None:
    """Raise InputError if a call passes any `attention_kwargs`, the additional arguments for attention.

    One of them, `scale`, is supported: diffusers has already removed it here.
    """
    if attention_kwargs:
        raise InputError(f"attention_kwargs takes 'scale' here, got {', '.join(map(repr, attention_kwargs))}")


def output(sample: Tensor, return_dict: bool) -> Output:
    """Return a prediction as diffusers' transformers do.

    return_dict: whether to return an output object; if not, a tuple is returned.
    """
    return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class _PatchedForward:
    """Callable that replaces a module's forward; while `active` is False, it calls the original forward."""

    def __init__(self, module: Module, forward: Callable[..., Output]) -> None:
        # From the class, because the attribute of the module may be a hook of accelerate.
        self.own: Callable[..., Output] = MethodType(type(module).forward, module)
        update_wrapper(self, self.own)
        self._module, self._forward = module, forward
        self.active = True

    @torch.compiler.disable(reason="parallelize takes no compiled transformer")  # type: ignore[no-untyped-call,untyped-decorator]
    def __call__(self, *args: object, **kwargs: object) -> Output:
        return self._scaled(*args, **kwargs) if self.active else self.own(*args, **kwargs)

    def _scaled(self, *args: object, **kwargs: object) -> Output:
        """Call the replacement of `forward`, in which `attention_kwargs["scale"]` scales LoRA weights."""

        def forward(_: Module, *args: object, **kwargs: object) -> Output:
            return self._forward(*args, **kwargs)

        # The decorator is for methods, and scales the adapters of the module that it gets as `self`.
        scaled: Callable[..., Output] = apply_lora_scale("attention_kwargs")(forward)
        return scaled(self._module, *args, **kwargs)


def _slot(module: Module) -> str:
    """Return the name of the module attribute to patch: `forward`, or `_old_forward` under accelerate."""
    # A hook of accelerate replaces `forward`, and calls the module's own as `_old_forward`.
    hooked = "_hf_hook" in vars(module) and "_old_forward" in vars(module)
    return "_old_forward" if hooked else "forward"


def forward_patch(class_names: Iterable[str]) -> ForwardPatch | None:
    """Return the patch for the first of some classes that a model family supports; None if there is none.

    A patch makes `forward` of a diffusers transformer run ParaDiT's code. class_names: the names of
    transformer classes, or of pipeline classes.
    """
    by_class = {
        name: one
        for one in FAMILIES.all()
        if one.forward_patch
        for name in (*one.pipelines, *one.transformers)
    }
    known = next((by_class[name] for name in class_names if name in by_class), None)
    return None if known is None else cast("ForwardPatch", imported(known.forward_patch))
