"""A diffusers transformer whose `forward` is computed in another way for a while."""

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
from paradit.config.registry import imported
from paradit.models.common.attached import Opened, is_own, name_of
from paradit.models.protocol import Transformer
from paradit.models.registry import FAMILIES

Predict = Callable[[Tensor, Tensor, tuple[Tensor | None, ...]], Tensor]
"""(latents [B, C, F, H, W], timestep, the arguments of the transformer's `context`) -> prediction."""

Output = Transformer2DModelOutput | tuple[Tensor]
"""A prediction as diffusers' transformers return it."""


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """How a family's transformer is computed in another way."""

    opened: Opened
    cut: Callable[[Module, Kernel], Transformer]
    """(module, the kernel of attention that ranks do not share) -> its pieces."""
    forward: Callable[[Predict], Callable[..., Output]]
    """Return what stands in for the class's `forward`, with the same arguments."""

    def put_in_place(self, module: Module, predict: Predict) -> Callable[[], None]:
        """Have `module(...)` call `predict`; the function returned puts the module's own forward back.

        It takes the place of the module's own forward, under the hooks of accelerate if it has any.
        """
        replaced = _Replaced(module, self.forward(predict))
        setattr(module, _slot(module), replaced)

        def undo() -> None:
            replaced.active = False  # whoever wrapped it since then calls the module's own
            if vars(module).get("_old_forward") is replaced:
                vars(module)["_old_forward"] = replaced.own
            if vars(module).get("forward") is replaced:
                del module.forward

        return undo


def check_free(module: Module, name: str) -> None:
    """Raise InputError if a module, called `name` in messages, does not have its own forward."""
    forward = vars(module).get(_slot(module))
    if isinstance(forward, _Replaced):
        if forward.active:
            raise InputError(f"{name} is parallelized already: call what parallelize returned first")
    elif forward is not None and not is_own(module, forward):
        raise InputError(
            f"parallelize cannot honour {name_of(forward)} in place of the forward of {name}: "
            "put diffusers' own back"
        )


def refuse(attention_kwargs: Mapping[str, object] | None) -> None:
    """Raise InputError if there are any; `scale`, which diffusers takes out, is not among them."""
    if attention_kwargs:
        raise InputError(f"attention_kwargs takes 'scale' here, got {', '.join(map(repr, attention_kwargs))}")


def output(sample: Tensor, return_dict: bool) -> Output:
    """A prediction as diffusers' transformers give it."""
    return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class _Replaced:
    """What is called as a module's forward; after `active` is set to False, the module's own."""

    def __init__(self, module: Module, forward: Callable[..., Output]) -> None:
        self.own: Callable[..., Output] = MethodType(type(module).forward, module)
        update_wrapper(self, self.own)
        self._module, self._forward = module, forward
        self.active = True

    @torch.compiler.disable(reason="parallelize takes no compiled transformer")  # type: ignore[no-untyped-call,untyped-decorator]
    def __call__(self, *args: object, **kwargs: object) -> Output:
        return self._scaled(*args, **kwargs) if self.active else self.own(*args, **kwargs)

    def _scaled(self, *args: object, **kwargs: object) -> Output:
        """With the module's adapters scaled by `attention_kwargs["scale"]`, as diffusers does it."""

        def forward(_: Module, *args: object, **kwargs: object) -> Output:
            return self._forward(*args, **kwargs)

        scaled: Callable[..., Output] = apply_lora_scale("attention_kwargs")(forward)
        return scaled(self._module, *args, **kwargs)


def _slot(module: Module) -> str:
    """The attribute that has the innermost forward."""
    hooked = "_hf_hook" in vars(module) and "_old_forward" in vars(module)
    return "_old_forward" if hooked else "forward"


def replacement(class_names: Iterable[str]) -> Replacement | None:
    """How a transformer is computed in another way, by the first of these classes that a family knows.

    class_names: of transformers, or of pipelines. None if no family knows one.
    """
    by_class = {
        name: one for one in FAMILIES.all() if one.replacement for name in (*one.pipelines, *one.transformers)
    }
    known = next((by_class[name] for name in class_names if name in by_class), None)
    return None if known is None else cast("Replacement", imported(known.replacement))
