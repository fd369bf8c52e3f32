"""Checks for hooks, patches and adapters on a diffusers transformer that `parallelize` would drop or break.

ParaDiT splits transformer blocks at their attention: it calls the submodules of a block, but never the block
or its attention module as a whole. A hook on a submodule therefore runs, but a hook on the block would be
dropped silently. The checks raise an error for hooks, patches and adapters that would be dropped, or that
need all tokens at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MethodType
from typing import Protocol

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch.nn import Module, Parameter

from paradit.config.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Classes of modules that ParaDiT takes apart: it calls their submodules, not the modules themselves."""

    modules: Mapping[str, type[Module]]
    """Mapping from the name of each module that ParaDiT takes apart to the class that the module must have.

    In a name, `*` stands for a number. The name `""` stands for the transformer itself.
    """
    processor: type[Processor]
    """Class of the attention processors that ParaDiT replaces."""


@dataclass(frozen=True, kw_only=True)
class Attached:
    """Findings of a successful check of a transformer: its attention backend, its modules and adapters."""

    backend: str
    """Name of the attention backend, which is the same in all transformer blocks."""
    description: str
    """Text that lists the attention backend and each submodule with its class and adapters.

    All ranks must have the same text.
    """


class Processor(Protocol):
    """Interface of diffusers' attention processors, as far as the checks use it."""

    @property
    def _attention_backend(self) -> AttentionBackendName | str | None: ...

    @property
    def _parallel_config(self) -> object: ...


Refusal = tuple[str, str]
"""Two texts for an error message: what `parallelize` does not support, and what to do instead."""

_WHOLE = "leave the weights whole; parallelize shares out tokens, not weights"
_OFFLOAD = "call pipe.enable_model_cpu_offload() instead"
_PARALLEL = "diffusers' own parallelism", "load the transformer without it"
_COMPILED = "torch.compile", "leave it uncompiled; parallelize splits the blocks at their attention"
_CLASSES = {
    "DistributedDataParallel": ("DDP", "give the pipeline the module inside"),
    "FullyShardedDataParallel": ("FSDP", _WHOLE),
    "FSDPModule": ("FSDP (fully_shard)", _WHOLE),
    "DTensor": ("sharded weights (DTensor)", _WHOLE),
}
"""Mapping from the class name of an unsupported wrapper or sharded parameter to its error texts (`Refusal`).
"""
_HOOKS = {
    "faster_cache": "the step cache FasterCache",
    "first_block_cache": "the step cache FirstBlockCache",
    "mag_cache": "the step cache MagCache",
    "pyramid_attention_broadcast": "the step cache PyramidAttentionBroadcast",
    "sea_cache": "the step cache SeaCache",
    "taylorseer_cache": "the step cache TaylorSeerCache",
    "text_kv_cache": "the step cache TextKVCache",
    "layer_skip": "layer skip",
}
"""Mapping from a file in diffusers.hooks, whose hooks are not supported, to the words for these hooks in
error messages."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def look(transformer: Module, opened: Opened, name: str) -> Attached:
    """Check a transformer's hooks, patches and weights; return its attention backend, modules and adapters.

    The check is fast enough to run at every call of the pipeline. opened: the modules that ParaDiT takes
    apart. name: the transformer's name in error messages. Raises InputError for the first thing that is not
    supported.
    """
    lines: list[str] = []
    backends: dict[str, str] = {}
    for path, part in transformer.named_modules():
        place = f"{name}.{path}" if path else name
        own = opened.modules.get(_NUMBER.sub("*", path))
        for what, instead in _refusals(part, own, opened.processor, is_root=not path):
            raise InputError(f"parallelize does not support {what} at {place}: {instead}")
        # Only attention modules have a processor.
        if own is not None and hasattr(part, "processor"):
            backends.setdefault(_backend(part.processor), place)
        lines.append(f"{path} {type(part).__name__} {_adapters(part)}")
    if len(backends) > 1:
        several = " and ".join(f"{backend} at {place}" for backend, place in backends.items())
        raise InputError(f"parallelize needs one attention backend, got {several}: set it on {name}")
    (backend,) = backends
    return Attached(backend=backend, description="\n".join([backend, *lines]))


def samples(module: Module) -> bytes:
    """Return, as bytes, the first and last value of every weight tensor that is a plain `Parameter`.

    Ranks compare these bytes to find different weights at little cost.
    """
    weights = [weight.detach().flatten() for weight in module.parameters() if type(weight) is Parameter]
    # In fp32, because numpy has no bfloat16.
    ends = [values[[0, -1]].float() for values in weights if len(values)]
    return torch.cat(ends).cpu().numpy().tobytes()


def is_own(owner: object, replaced: object, method: str = "forward") -> bool:
    """Return whether a method of an object is the one that the object's class defines, not a patch.

    owner: the object. replaced: the method, as the object has it. method: the name of the method.
    """
    own = getattr(type(owner), method)
    return isinstance(replaced, MethodType) and replaced.__self__ is owner and replaced.__func__ is own


def name_of(function: object) -> str:
    """Return the name of a function or callable object, for error messages."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _refusals(
    part: Module, own: type[Module] | None, processor: type[Processor], *, is_root: bool
) -> Iterator[Refusal]:
    """Yield error texts for everything in one module of a transformer that is not supported.

    part: the module. own: the class that the module must have, if ParaDiT calls its submodules instead of the
    module; None: ParaDiT calls the module as a whole. processor: the class that attention processors must
    have. is_root: whether the module is the transformer itself.
    """
    if is_root:
        yield from _modes(part)
    yield from _accelerate_hooks(part, own, is_root=is_root)
    yield from _weights(part)
    if own is not None and type(part) is not own:
        yield _stranger(part, own)
    yield from _diffusers_hooks(part, own)
    if own is not None:
        # Module.compile() sets it, and only a call of the whole module runs it.
        if part._compiled_call_impl is not None:
            yield _COMPILED
        if not is_root:  # hooks on the transformer itself are run
            yield from _torch_hooks(part)
        yield from _patches(part, own, "forward", is_root=is_root)
        if hasattr(part, "processor"):
            yield from _processor(part.processor, processor)


def _modes(transformer: Module) -> Iterator[Refusal]:
    # diffusers' enable_cache() sets it.
    if (cache := getattr(transformer, "_cache_config", None)) is not None:
        yield f"the step cache {type(cache).__name__}", "call its disable_cache()"
    if getattr(transformer, "_parallel_config", None) is not None:
        yield _PARALLEL


def _accelerate_hooks(part: Module, own: type[Module] | None, *, is_root: bool) -> Iterator[Refusal]:
    hook = vars(part).get("_hf_hook")
    # Hooks on the whole transformer run around the patched forward. Sequential offload also moves the weights
    # of every module when the module is called, and ParaDiT does not call the opened ones.
    for each in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
        if isinstance(each, AlignDevicesHook) and (each.offload or not is_root):
            yield "sequential CPU offload" if each.offload else "a device map", _OFFLOAD
        elif each is not None and own is not None and not is_root:
            yield f"the accelerate hook {type(each).__name__}", "put it on the whole transformer"


def _weights(part: Module) -> Iterator[Refusal]:
    weights = [weight for weight in part._parameters.values() if weight is not None]
    # DDP and FSDP show in the class of the module, DTensor in that of its weights.
    for kind in (type(part), *map(type, weights)):
        if refusal := _of_class(kind):
            yield refusal
    if any(weight.is_meta for weight in weights):
        yield "weights that are not loaded (on the meta device)", "load them first"


# Cached, because `look` runs at every call of the pipeline.
@cache
def _of_class(kind: type) -> Refusal | None:
    # By the bases' names: fully_shard makes a new class, of which FSDPModule is a base.
    return next((_CLASSES[base.__name__] for base in kind.__mro__ if base.__name__ in _CLASSES), None)


def _stranger(part: Module, own: type[Module]) -> Refusal:
    # The class of what torch.compile(module) returns.
    if type(part).__name__ == "OptimizedModule":
        return _COMPILED
    return f"a {type(part).__name__} in place of a {own.__name__}", "put the diffusers module back"


def _diffusers_hooks(part: Module, own: type[Module] | None) -> Iterator[Refusal]:
    registry = vars(part).get("_diffusers_hook")
    for name, hook in registry.hooks.items() if registry is not None else ():
        file = type(hook).__module__.removeprefix("diffusers.hooks.")
        if file == "group_offloading":
            yield "group offload", _OFFLOAD
        elif file == "context_parallel":
            yield _PARALLEL
        # Layerwise casting of a submodule runs, because ParaDiT calls the submodule.
        elif file != "layerwise_casting" or own is not None:
            yield _HOOKS.get(file, f"the diffusers hook {type(hook).__name__}"), f"remove its hook {name!r}"


def _torch_hooks(part: Module) -> Iterator[Refusal]:
    for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
        yield f"the forward hook {name_of(hook)}", "hook a layer inside, or the whole transformer"


def _patches(part: object, own: type, method: str, *, is_root: bool = False) -> Iterator[Refusal]:
    """Yield error texts if a method has been patched, either in an object's class or in the object itself.

    part: the object. own: the class that it must have. method: the name of the method. is_root: whether the
    object is the transformer itself.
    """
    of_class = getattr(type(part), method)
    # By name, because a patch of diffusers' class changes what `own` has, too.
    if (of_class.__module__, of_class.__qualname__) != (own.__module__, f"{own.__qualname__}.{method}"):
        yield f"{name_of(of_class)} in place of {own.__name__}.{method}", "put diffusers' own back"
    replaced = vars(part).get(method)
    if replaced is not None and not is_root and not is_own(part, replaced, method):
        yield f"{name_of(replaced)} in place of its {method}", "put diffusers' own back"


def _processor(processor: object, own: type[Processor]) -> Iterator[Refusal]:
    if not isinstance(processor, own) or type(processor) is not own:
        yield f"the attention processor {type(processor).__name__}", f"set a {own.__name__}"
        return
    yield from _patches(processor, own, "__call__")
    if processor._parallel_config is not None:
        yield _PARALLEL


def _backend(processor: Processor) -> str:
    """Return the attention backend that diffusers would use: the processor's, or else the global default."""
    backend = processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]  # type: ignore[no-untyped-call]
    return str(getattr(backend, "value", backend))


def _adapters(part: Module) -> str:
    """Return the adapter settings of a peft layer as text; empty for other modules."""
    state = vars(part)
    # Only peft's layers have this attribute.
    if "scaling" not in state:
        return ""
    names = ("_active_adapter", "scaling", "merged_adapters", "_disable_adapters")
    return str([state.get(name) for name in names])
