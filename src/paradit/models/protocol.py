"""What a model family's adapter offers; sampling and the engine know models by this only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from paradit.attention.base import Attend, Layout, Projection, Site, Wait
from paradit.config.tiles import Tile
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.common.layers import Layers
from paradit.models.spec import ModelSpec

Frames: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

Prompt: TypeAlias = tuple[Tensor, ...]
"""What a transformer reads besides latents and timestep: the arguments of its `context`, each [1, ...]."""


class Context(Protocol):
    """What a transformer reads of prompts, once they are known."""

    @property
    def batch(self) -> int:
        """Number of prompts."""


@dataclass(frozen=True, kw_only=True)
class Tokens(ABC):
    """A video's tokens on their way through the blocks, with all that a block needs to know of them."""

    hidden_states: Tensor
    """[B, S, width], the video's."""
    layout: Layout

    @property
    @abstractmethod
    def changing(self) -> tuple[Tensor, ...]:
        """What blocks change: what travels between ranks that hold different layers."""

    @abstractmethod
    def shard(self, start: int, stop: int) -> Self:
        """The video's tokens start to stop only."""


T = TypeVar("T", bound=Tokens)
C = TypeVar("C", bound=Context)
L = TypeVar("L", bound=Layout)


class Block(Generic[T]):
    """A transformer block, whose attentions are computed by whatever is given.

    A block that attends once says what comes before and after its attention. One that attends several times
    overrides `sites` and `run` instead; all its attentions have the same heads.
    """

    site: Site

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its attentions, in order."""
        return (self.site,)

    def project(self, tokens: T) -> Projection:
        """v, then k, then q: [B, S, H, D], before RoPE."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither run nor project")

    def finish(self, tokens: T, attended: Tensor) -> T:
        """The tokens after the block, given their attended values [B, S, H, D]."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither run nor finish")

    def run(self, tokens: T, attend: Attend) -> Generator[Wait, None, T]:
        """The tokens after the block; yields where `attend` would wait."""
        attended = yield from attend(self.site, self.project(tokens), tokens.layout)
        return self.finish(tokens, attended)


class CutTransformer(ABC, Generic[T, C, L]):
    """A diffusion transformer in pieces, with tokens, contexts and layouts of its family's own."""

    num_heads: int
    blocks: Sequence[Block[T]]
    layers: Layers
    """Which of the model's layers `blocks` are."""
    context: Callable[..., C]
    """(the parts of B prompts, each [B, ...]) -> what `embed` and the blocks read; once per request."""

    @property
    def sites(self) -> list[Site]:
        """The attentions of a forward through `blocks`, in order."""
        return [site for block in self.blocks for site in block.sites]

    @abstractmethod
    def layout(self, latent_shape: tuple[int, int, int]) -> L:
        """Where the tokens of latents of (F, H, W) are; once per request."""

    @abstractmethod
    def join(self, contexts: Sequence[C]) -> C:
        """One context for the prompts of all."""

    @abstractmethod
    def embed(self, latents: Tensor, timestep: Tensor, context: C, layout: L) -> T:
        """The tokens of latents [B, C, F, H, W]."""

    @abstractmethod
    def branch(self, tokens: T, context: C) -> T:
        """The same tokens for the prompts of another context, as many times as it has prompts."""

    @abstractmethod
    def keep_layers(self, layers: range) -> None:
        """Hold only these blocks from here on, so that the others' memory is free.

        Those that are not held are read from the model's folder, if it was loaded without layers.
        """

    @abstractmethod
    def resume(self, changing: Sequence[Tensor], timestep: Tensor, context: C, layout: L) -> T:
        """The tokens that another rank's blocks left, of which `changing` is what they changed.

        timestep, context and layout are those with which the tokens were embedded.
        """

    @abstractmethod
    def changing_shapes(self, context: C, layout: L) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors in `Tokens.changing`."""

    @abstractmethod
    def head(self, tokens: T) -> Tensor:
        """Each token's part of the prediction, [B, S, patch values]; a rank may do it for its own tokens."""

    @abstractmethod
    def unpatchify(self, values: Tensor, layout: L) -> Tensor:
        """The prediction [B, C, F, H, W], from all tokens' parts."""


Transformer: TypeAlias = CutTransformer[Tokens, Context, Layout]
"""A transformer of any family. Whoever has one gives it nothing but its own tokens, contexts and layouts."""


def of_any_family(transformer: CutTransformer[T, C, L]) -> Transformer:
    """A family's transformer, as those see it who know no family."""
    return cast("Transformer", transformer)


class Scheduler(Protocol):
    """A diffusers scheduler."""

    timesteps: Tensor
    """Those of the steps that it is set to."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def set_timesteps(self) -> Callable[..., None]:
        """(num_inference_steps, *, sigmas, device, ...), of which each class takes some."""

    def set_begin_index(self, begin_index: int) -> None: ...

    @property
    def step(self) -> Callable[..., tuple[Tensor, ...]]:
        """(model_output, timestep, sample, *, return_dict, ...) -> the sample one step less noisy, first.

        Many take a `generator` too, which they draw their noise from: see `sampling.solver.solver_step`.
        """


class Decoder(Protocol):
    """Decodes the latents of one video in pieces some frames long: of the whole picture, or of a tile."""

    scale: int
    """Samples to a latent pixel, along height and width."""
    num_pieces: int
    """Of the video."""

    def piece_shape(self, index: int, tile: Tile) -> tuple[int, ...]:
        """Of a tile's piece `index`: [1, C, f, H, W]."""

    def pieces(self, tile: Tile) -> Iterator[Tensor]:
        """A tile's samples, piece after piece; each belongs to whoever takes it.

        Many tiles may be in hand at once: each keeps what it needs for its next piece.
        """

    def frames(self, pictures: Iterable[Tensor]) -> Iterator[Frames]:
        """Frames [f, H, W, 3] for each latent frame, from the pieces of the whole picture."""


class VideoModel(Protocol):
    """A text-to-video model, loaded."""

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    """Of the transformers and the text encoder."""
    experts: Sequence[Transformer]

    @property
    def prompt_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the parts of one prompt."""

    def fingerprint(self) -> bytes:
        """The same where the same weights are loaded; cheap, so only some of the values go in."""

    def encode_prompt(self, prompt: str, guidance_scale: float | None = None) -> Prompt:
        """The parts of a prompt, in `dtype`.

        guidance_scale is among them where the model was trained to read it; None means its default.
        """

    def left_out(self, prompt: str) -> dict[str, tuple[int, str]]:
        """Return, by text encoder, how many tokens it reads and the end of the prompt that it does not read.

        Only encoders for which the prompt is too long.
        """

    def scheduler(self, num_inference_steps: int) -> Scheduler:
        """A fresh scheduler, with no memory of other requests."""

    def expert_at(self, timestep: Tensor) -> int:
        """Which of the experts serves a timestep of the scheduler."""

    def model_timestep(self, timestep: Tensor, latents: Tensor) -> Tensor:
        """The timestep as the transformer takes it: [B], or [B, S].

        timestep: of a whole video, or, where the family can, [F]: of each latent frame.
        """

    def decoder(self, latents: Tensor | LatentBlocks, *, park: bool = False) -> Decoder:
        """Of latents [1, C, F, h, w], or as they come.

        park: what tiles keep between their pieces waits in the machine's memory, not on the GPU.
        """
