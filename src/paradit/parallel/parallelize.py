"""`parallelize`, which runs a user's diffusers pipeline on all ranks of the existing process group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Module

from paradit.attention.base import Kernel
from paradit.config.errors import InputError
from paradit.distributed.mesh import Mesh
from paradit.distributed.world import current_world
from paradit.models.common.attachments import Attached, look, samples
from paradit.models.common.attention_kernel import load_kernel
from paradit.models.common.patch_forward import ForwardPatch, check_free, forward_patch
from paradit.models.registry import supported_transformers
from paradit.parallel.sequence_parallel import SequenceParallel

SEEDS = (
    "give pipe(...) a generator with the same seed on every rank; a scheduler that draws noise takes it from "
    "torch's global generator, so also call torch.manual_seed(seed) on every rank before each pipe(...)"
)


class Pipeline(Protocol):
    """A diffusers pipeline, whose transformers `parallelize` finds among its attributes."""

    @property
    def device(self) -> torch.device: ...


def parallelize(pipe: Pipeline) -> Callable[[], None]:
    """Spread a diffusers pipeline's transformers over all ranks, if a model family knows their class.

    Any pipeline class works, for instance one that makes videos from an image. Every rank loads the pipeline,
    calls this function, and calls the pipeline with the same arguments, including a `generator` of the same
    seed. `pipe(prompt, ...)` then works as usual. It raises RuntimeError, naming the rank, if ranks pass
    different inputs.

    Returns a function that undoes the change. The ranks share the tokens (sequence parallelism), with exact
    results for any number of tokens, heads and ranks.

    Adapters, hooks and attention backends may be attached to a transformer at any time. Each call of the
    transformer looks them up: an attachment either takes effect as usual, or InputError names it.

    Raises InputError for a pipeline with other transformers, if no process group is initialised, if the
    pipeline is parallelized already, or if something attached to its transformers is not supported.
    """
    names = [name for name in ("transformer", "transformer_2") if getattr(pipe, name, None) is not None]
    how = _forward_patch(pipe, names)
    for name in names:
        look(getattr(pipe, name), how.opened, f"pipe.{name}")
        check_free(getattr(pipe, name), f"pipe.{name}")
    if current_world(pipe.device) is None:
        raise InputError("parallelize needs a process group: call torch.distributed.init_process_group first")
    # All checks come before this, so that no pipeline is left with only some of its transformers patched.
    undos = [how.put_in_place(getattr(pipe, name), _Forward(pipe, name, how)) for name in names]

    def undo() -> None:
        for one in undos:
            one()

    return undo


def _forward_patch(pipe: Pipeline, names: Sequence[str]) -> ForwardPatch:
    """Return the patch by which a model family's code replaces the `forward` of a pipeline's transformers.

    names: the pipeline's attributes that are transformers. Raises InputError if no model family supports
    their class.
    """
    kinds = [kind.__name__ for name in names for kind in type(getattr(pipe, name)).__mro__]
    # A wrapped transformer no longer shows its own class; its wrapper is refused later, by name.
    found = forward_patch([*kinds, type(pipe).__name__])
    if found is None or not names:
        known = " or a ".join(supported_transformers())
        got = " with ".join([type(pipe).__name__, *(type(getattr(pipe, name)).__name__ for name in names)])
        raise InputError(f"parallelize takes a pipeline with a {known}, got {got}")
    return found


class _Forward:
    """Replacement for the `forward` of a diffusers transformer, which all ranks compute together.

    It keeps nothing of the transformer between calls, because weights, adapters, layers and rotary tables may
    change between any two calls.
    """

    def __init__(self, pipe: Pipeline, name: str, how: ForwardPatch) -> None:
        self._pipe, self._attribute, self._how = pipe, name, how
        self._module: Module = getattr(pipe, name)
        self._predictors: dict[tuple[torch.device, str], SequenceParallel] = {}
        self._agreed = ""
        """Description of what was attached to the transformer when ranks last compared its weights; empty
        before that."""

    @torch.no_grad()
    def __call__(self, latents: Tensor, timestep: Tensor, prompt: tuple[Tensor | None, ...]) -> Tensor:
        # The user may have wrapped the module since `parallelize`.
        attached = look(getattr(self._pipe, self._attribute), self._how.opened, f"pipe.{self._attribute}")
        kernel = load_kernel(attached.backend)
        predictor = self._predictor(latents.device, attached.backend, kernel)
        self._agree(
            predictor, attached, {"the noise": (latents,), "the timestep": (timestep,), "the prompt": prompt}
        )

        transformer = self._how.cut(self._module, kernel)
        frames, height, width = latents.shape[2:]
        layout = transformer.layout((frames, height, width))
        tokens = transformer.embed(latents, timestep, transformer.context(*prompt), layout)
        return transformer.unpatchify(predictor.forward(transformer, tokens), layout)

    def _predictor(self, device: torch.device, backend: str, kernel: Kernel) -> SequenceParallel:
        # Kept between calls, because it keeps the plans of what ranks send.
        if (device, backend) not in self._predictors:
            world = current_world(device)
            assert world is not None, "the process group was destroyed"
            self._predictors[device, backend] = SequenceParallel(Mesh(world), kernel=kernel)
        return self._predictors[device, backend]

    def _agree(
        self, predictor: SequenceParallel, attached: Attached, inputs: Mapping[str, Sequence[Tensor | None]]
    ) -> None:
        """Raise RuntimeError if ranks differ in a transformer's attachments, weights or inputs.

        predictor: predictor whose ranks compare. attached: findings about the transformer's attachments.
        inputs: tensors to compare, under names for the error message.
        """
        name, description = f"pipe.{self._attribute}", attached.description
        values = {what: _bytes(*tensors) for what, tensors in inputs.items()}
        predictor.agree_all(
            {f"what is attached to {name}": description.encode()} | values, {"the noise": SEEDS}
        )
        if description != self._agreed:  # not at every call, because it looks at every weight
            predictor.agree(f"a weight of {name}", samples(self._module))
            self._agreed = description


def _bytes(*tensors: Tensor | None) -> bytes:
    # As fp32, because NumPy has no bfloat16.
    return b"".join(tensor.float().cpu().numpy().tobytes() for tensor in tensors if tensor is not None)
