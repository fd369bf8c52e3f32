"""Interfaces that every model family implements; sampling and the engine use models only through them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from paradit.attention.base import Attend, Layout, Projection, Site, Wait
from paradit.config.requests import ResolvedRequest
from paradit.config.tiles import Tile
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.common.layers import Layers
from paradit.models.spec import ModelSpec

Frames: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

Prompt: TypeAlias = tuple[Tensor, ...]
"""Encoded prompt: the tensors, [1, ...] each, that a transformer's `context` takes as arguments."""


def untold(_: int) -> None:
    """Do nothing: stands in for a function that is told the progress of a work."""


class Context(Protocol):
    """Interface of encoded prompts, converted for the transformer blocks; computed once per request."""

    @property
    def batch(self) -> int:
        """Number of prompts in the batch."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens of a video on their way through the transformer blocks, with all else that a block reads."""

    hidden_states: Tensor
    """Hidden states [B, S, width] of the video's tokens."""
    layout: Layout

    @property
    def changing(self) -> tuple[Tensor, ...]:
        """Tensors that transformer blocks change, which a rank sends on to the rank with the next layers."""
        return (self.hidden_states,)

    def shard(self, start: int, stop: int) -> Self:
        """Return only tokens `start` to `stop` (excluded) of the video, for a rank that holds just these.

        A family overrides this if its tokens have more fields with a row per token.
        """
        hidden_states = self.hidden_states[:, start:stop]
        return replace(self, hidden_states=hidden_states, layout=self.layout.shard(start, stop))

    def dealt(self, hidden_states: Tensor, held: Tensor) -> Self:
        """Return these tokens of the whole video as a rank holds them that holds some of them, in any order.

        hidden_states: this rank's hidden states [B, tokens, width]. held: indices of its tokens in the video.
        A family with sparse attention overrides this if its tokens have more fields with a row per token.
        """
        return replace(self, hidden_states=hidden_states, layout=self.layout.take(held))


T = TypeVar("T", bound=Tokens)
C = TypeVar("C", bound=Context)
L = TypeVar("L", bound=Layout)


class Block(Generic[T]):
    """A transformer block whose attention is computed by a function that the caller passes in.

    A block with one attention implements `project`, which runs before the attention, and `finish`, which runs
    after it. A block with several attentions overrides `sites` and `run` instead; all its attentions have the
    same number of heads.
    """

    site: Site

    @property
    def sites(self) -> tuple[Site, ...]:
        """Attention operations (`Site`) of the block, in the order in which they run."""
        return (self.site,)

    def project(self, tokens: T) -> Projection:
        """Yield the attention's values, then keys, then queries, each [B, S, H, D], before RoPE."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither run nor project")

    def finish(self, tokens: T, attended: Tensor) -> T:
        """Return the block's output tokens, given the output of its attention, [B, S, H, D]."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither run nor finish")

    def run(self, tokens: T, attend: Attend) -> Generator[Wait, None, T]:
        """Run the block and return its output tokens; yields whenever `attend` would wait for other ranks."""
        attended = yield from attend(self.site, self.project(tokens), tokens.layout)
        return self.finish(tokens, attended)


class SplitTransformer(ABC, Generic[T, C, L]):
    """A diffusion transformer split into embedding, blocks and head, so that ranks can share its work.

    Each model family has its own types of tokens, contexts (encoded prompts) and layouts.
    """

    num_heads: int
    blocks: Sequence[Block[T]]
    layers: Layers
    """Record of the model's layers, and of which of them this rank holds in memory. `blocks` are those that
    it holds."""
    context: Callable[..., C]
    """Function that converts B encoded prompts, tensors [B, ...], to the form that transformer blocks read.

    Called once per request.
    """

    @property
    def sites(self) -> list[Site]:
        """Attention operations (`Site`) of this rank's transformer blocks, in the order in which they run."""
        return [site for block in self.blocks for site in block.sites]

    @abstractmethod
    def layout(self, latent_shape: tuple[int, int, int]) -> L:
        """Return the layout (positions and RoPE rotations) of the tokens of latents (F, H, W).

        Called once per request.
        """

    @abstractmethod
    def join(self, contexts: Sequence[C]) -> C:
        """Merge several batches of encoded prompts, in the form that `context` returns, into one batch."""

    def separate(self, joined: C, contexts: Sequence[C]) -> Sequence[C]:  # noqa: ARG002
        """Return `contexts` as parts of `joined`, into which `join` has copied them, to free their memory.

        A family whose contexts are large overrides this.
        """
        return contexts

    @abstractmethod
    def embed(self, latents: Tensor, timestep: Tensor, context: C, layout: L) -> T:
        """Embed latents [B, C, F, H, W] as tokens, the input of the first block."""

    @abstractmethod
    def branch(self, tokens: T, context: C) -> T:
        """Return the tokens for another guidance branch.

        tokens: the tokens as embedded for one branch. context: the other branch's encoded prompts. The
        video's tokens are repeated, once for each of these prompts.
        """

    @abstractmethod
    def keep_layers(self, layers: range) -> None:
        """Keep only some transformer blocks in memory, and free the memory of the others.

        layers: the indices of the blocks to keep. Those that are not in memory are read from the model's
        folder, if the model was loaded without layers.
        """

    @abstractmethod
    def resume(self, changing: Sequence[Tensor], timestep: Tensor, context: C, layout: L) -> T:
        """Rebuild the tokens that another rank's transformer blocks have put out, from what that rank sent.

        changing: the tensors that it sent (`Tokens.changing`). timestep, context, layout: the arguments that
        the tokens were embedded with.
        """

    @abstractmethod
    def changing_shapes(self, context: C, layout: L) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the tensors that transformer blocks change, those in `Tokens.changing`."""

    @abstractmethod
    def head(self, tokens: T) -> Tensor:
        """Return the output of the transformer's head for each token, [B, S, patch values].

        A rank may call this for only its own tokens.
        """

    @abstractmethod
    def unpatchify(self, values: Tensor, layout: L) -> Tensor:
        """Assemble the prediction [B, C, F, H, W] from the head's output for all tokens.

        The head's output is [B, S, patch values].
        """


Transformer: TypeAlias = SplitTransformer[Tokens, Context, Layout]
"""A split transformer of any model family.

Its methods may be given only tokens, contexts (encoded prompts) and layouts that it has itself returned.
"""


def of_any_family(transformer: SplitTransformer[T, C, L]) -> Transformer:
    """Return `transformer` itself, typed as `Transformer` for code that works with any model family."""
    return cast("Transformer", transformer)


class Scheduler(Protocol):
    """Interface of diffusers' schedulers, as far as ParaDiT uses it."""

    timesteps: Tensor
    """Timesteps of the denoising steps that `set_timesteps` has set."""

    @property
    def begin_index(self) -> int | None:
        """Index in `timesteps` of the step to begin with, as `set_begin_index` has set it."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def set_timesteps(self) -> Callable[..., None]:
        """Method that sets the denoising steps: (num_inference_steps, *, sigmas, device, ...).

        Each scheduler class takes some of these arguments.
        """

    def set_begin_index(self, begin_index: int) -> None: ...

    @property
    def add_noise(self) -> Callable[..., Tensor]:
        """Method that adds as much noise to latents as belongs to a step: (latents, noise, timesteps)."""

    @property
    def scale_noise(self) -> Callable[..., Tensor]:
        """Method of flow-matching schedulers that does what `add_noise` does: (latents, timesteps, noise)."""

    @property
    def step(self) -> Callable[..., tuple[Tensor, ...]]:
        """Method that takes one step: (model_output, timestep, sample, *, return_dict, ...) -> a tuple.

        The tuple begins with the new sample, which is less noisy. Many classes also take a `generator`, from
        which they draw noise: see `sampling.solver.solver_step`.
        """


class Decoder(Protocol):
    """Interface of a decoder that decodes one video's latents, some frames at a time, whole or in tiles."""

    scale: int
    """Factor by which the decoder's output is larger than the latents, along height and along width."""
    num_pieces: int
    """Number of pieces (some frames each) in which the video is decoded."""

    def piece_shape(self, index: int, tile: Tile) -> tuple[int, ...]:
        """Return the shape [1, C, f, H, W] of the decoder's output for piece `index` of a tile.

        A piece consists of some frames.
        """

    def pieces(self, tile: Tile) -> Iterator[Tensor]:
        """Yield the decoder's output for a tile, one piece (some frames) at a time.

        The caller may overwrite a piece. Many tiles may be in progress at once: each iterator keeps what it
        needs for its next piece.
        """

    def frames(self, pictures: Iterable[Tensor]) -> Iterator[Frames]:
        """Convert decoded pictures, with their tiles joined, to frames [f, H, W, 3].

        Yields the frames of one latent frame at a time.
        """


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Pictures and videos that a request gives, fitted to the size of the video to make."""

    image: Frames | None = None
    """Picture [H, W, 3] of the first frame."""
    last_image: Frames | None = None
    """Picture [H, W, 3] of the last frame."""
    video: Frames | None = None
    """Frames [F, H, W, 3] of the video to change."""


class Conditions(Protocol):
    """Effect of a request's pictures on its denoising, from their encoded form.

    frames, in all methods: indices, in the whole video, of the latent frames that `latents` has.
    """

    def prompts(self, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        """Return the encoded prompts with the embeddings of pictures that a transformer reads too."""

    def begin(self, noise: Tensor, scheduler: Scheduler) -> Tensor:
        """Return the latents [B, C, F, h, w], fp32, to begin with: the noise, or a video with noise added."""

    def model_input(self, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Return the transformer's input [B, C', f, h, w], in its dtype, for latents [B, C, f, h, w]."""

    def model_timestep(self, timestep: Tensor, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Return the timestep as the transformer takes it, as `VideoModel.model_timestep` does."""

    def end(self, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Return denoised latents, with the latent frames that are given put in."""


class VideoModel(Protocol):
    """Interface of a loaded video model."""

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    """Dtype of the transformers and the text encoder."""
    experts: Sequence[Transformer]

    @property
    def prompt_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors that one encoded prompt consists of."""

    def fingerprint(self) -> bytes:
        """Return a fast fingerprint of the loaded weights: bytes that are equal for equal weights."""

    def encode_prompt(self, prompt: str, guidance_scale: float | None = None) -> Prompt:
        """Return the encoded prompt: tensors in `dtype`, with the shapes that `prompt_shapes` lists.

        guidance_scale: the guidance scale, for models whose transformer reads it with the prompt; None: the
        model's default.
        """

    def left_out(self, prompt: str) -> dict[str, tuple[int, str]]:
        """Return a mapping from the name of a text encoder to its token limit and a prompt's cut-off text.

        It has only text encoders for which the prompt is too long.
        """

    def condition_shapes(self, request: ResolvedRequest) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a request's encoded pictures, tensors in fp32; () if it has none."""

    def encode_conditions(
        self, request: ResolvedRequest, pixels: Pixels, told: Callable[[int], None] = untold
    ) -> tuple[Tensor, ...]:
        """Encode a request's pictures; return tensors in fp32, with the shapes of `condition_shapes`.

        told: function that is told, during the work, how many latent frames are encoded so far, of as many as
        `config.encoded_pictures.num_encoded` counts.
        """

    def conditions(self, request: ResolvedRequest, encoded: tuple[Tensor, ...]) -> Conditions:
        """Return the effect of a request's pictures on its denoising.

        encoded: the tensors that `encode_conditions` returned, perhaps on another rank.
        """

    def scheduler(self, request: ResolvedRequest) -> Scheduler:
        """Return a new scheduler for one video of a request, set to the request's denoising steps."""

    def expert_at(self, timestep: Tensor) -> int:
        """Return the index of the expert (one of the model's transformers) to use at a timestep."""

    def model_timestep(self, timestep: Tensor, latents: Tensor) -> Tensor:
        """Return the timestep as the transformer takes it: [B], or [B, F] with one for each frame of tokens.

        timestep: the timestep of a whole video or, if the model family allows it, [f] with one for each
        latent frame. latents: the latents that the transformer gets.
        """

    def decoder(self, latents: Tensor | LatentBlocks, *, park: bool = False) -> Decoder:
        """Return a decoder of latents [1, C, F, h, w], which may still be arriving (`LatentBlocks`).

        park: whether the decoder's cache for a tile is kept in host memory, not on the GPU, while other tiles
        are decoded.
        """
