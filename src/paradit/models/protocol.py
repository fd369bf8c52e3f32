"""What a model family's adapter offers; sampling and the engine know models by this only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from paradit.attention.base import Layout
    from paradit.models.latent_blocks import LatentBlocks
    from paradit.models.layers import Layers
    from paradit.models.spec import ModelSpec
    from paradit.tiles import Tile


Frames: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

Prompt: TypeAlias = "tuple[Tensor, ...]"
"""What a transformer reads besides latents and timestep: the arguments of its `context`, each [1, ...]."""


class Tokens(Protocol):
    """A family's tokens, with all that its blocks need to know of them; a frozen dataclass."""

    @property
    def hidden_states(self) -> Tensor: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def changing(self) -> tuple[Tensor, ...]:
        """What blocks change: what travels between ranks that hold different layers."""

    def shard(self, start: int, stop: int) -> Any:
        """The video's tokens start to stop only."""


class Block(Protocol):
    """A transformer block, cut at its self-attention."""

    def project(self, tokens: Any) -> Iterator[Tensor]:
        """v, then k, then q: [B, S, H, D], before RoPE."""

    def finish(self, tokens: Any, attended: Tensor) -> Any:
        """The tokens after the block, given their attended values [B, S, H, D]."""


class Transformer(Protocol):
    """A diffusion transformer in pieces."""

    num_heads: int

    @property
    def blocks(self) -> Sequence[Block]: ...

    def layout(self, latent_shape: tuple[int, int, int]) -> Any:
        """Where the tokens of latents of (F, H, W) are; once per request."""

    @property
    def context(self) -> Callable[..., Any]:
        """(the parts of B prompts, each [B, ...]) -> what `embed` and the blocks read; once per request."""

    def join(self, contexts: Sequence[Any]) -> Any:
        """One context for the prompts of all."""

    def embed(self, latents: Tensor, timestep: Tensor, context: Any, layout: Any) -> Any:
        """The Tokens of latents [B, C, F, H, W]."""

    def branch(self, tokens: Any, context: Any) -> Any:
        """The same tokens for the prompts of another context, as many times as it has prompts."""

    @property
    def layers(self) -> Layers:
        """Which of the model's layers `blocks` are."""

    def keep_layers(self, layers: range) -> None:
        """Hold only these blocks from here on, so that the others' memory is free.

        Those that are not held are read from the model's folder, if it was loaded without layers.
        """

    def resume(self, changing: Sequence[Tensor], timestep: Tensor, context: Any, layout: Any) -> Any:
        """The Tokens that another rank's blocks left, of which this is what they changed.

        timestep, context and layout are those with which the tokens were embedded.
        """

    def changing_shapes(self, context: Any, layout: Any) -> tuple[tuple[int, ...], ...]:
        """Of what `Tokens.changing` gives."""

    def head(self, tokens: Any) -> Tensor:
        """Each token's part of the prediction, [B, S, patch values]; a rank may do it for its own tokens."""

    def unpatchify(self, values: Tensor, layout: Any) -> Tensor:
        """The prediction [B, C, F, H, W], from all tokens' parts."""


class Scheduler(Protocol):
    """A diffusers scheduler, set to a number of steps."""

    timesteps: Tensor

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
