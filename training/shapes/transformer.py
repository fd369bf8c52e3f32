"""Training of the bundled model's text encoder and transformer, together, on the frozen VAE's latents.

The training is flow matching, as Wan's, half of it with a noise level for each frame (Diffusion Forcing,
arXiv 2407.01392). It draws from a pool of encoded videos, to which every rank adds one video in every step.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
from common import Run, autocast, device_and_dtype, load_training_state, save_training_state
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from text import TEXT_DIM, build_text_encoder, build_tokenizer, caption, pad_bias
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import UMT5EncoderModel

from paradit.shapes.scenes import FPS, MAX_FRAMES, Scene, all_scenes, draw

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 6,
    "attention_head_dim": 36,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 128,
    "ffn_dim": 864,
    "num_layers": 6,
    "rope_max_seq_len": 256,
}
SIZE = 96
"""Width and height of the videos, in pixels."""
DEFAULTS = {
    "name": "shapes",
    "width": SIZE,
    "height": SIZE,
    "num_frames": 33,
    "fps": FPS,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
    "train_frames": [5, MAX_FRAMES],
    "takes": ["image", "last_image"],
}
CAPACITY = 8000
"""Number of encoded videos that the pool keeps; they take about 480 MB on disk."""
LATENT_FRAMES = (MAX_FRAMES - 1) // 4 + 1
DEFAULT_LATENT_FRAMES = 9  # 33 frames
SHIFT = 5.0
"""Shift of the noise levels trained on, like `flow_shift` of a diffusers scheduler."""


class Pool:
    """Pool of encoded training videos in a file, so that a restart finds them again.

    A video follows from its number, i, and is stored at index i modulo the capacity. The VAE is causal in
    time, so the first latent frames of a long video equal those of a short one: one encoding serves every
    length.
    """

    def __init__(self, folder: Path, vae: AutoencoderKLWan, run: Run) -> None:
        self.vae, self.run = vae, run
        self.device, self.dtype = device_and_dtype()
        # What travels is learned last, so it is shown twice as often.
        self.scenes = [
            scene
            for scene in all_scenes()
            if not scene.held_out
            for _ in range(1 if scene.motion in ("growing", "shrinking", "standing still") else 2)
        ]
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        side = SIZE // vae.config.scale_factor_spatial
        shape = (CAPACITY, vae.config.z_dim, LATENT_FRAMES, side, side)
        path = folder / "pool.npy"
        folder.mkdir(parents=True, exist_ok=True)
        if run.rank == 0 and not path.exists():
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
        run.wait_for_all()
        self.latents = np.lib.format.open_memmap(path, mode="r+")
        self.count = 0

    def scene(self, number: int) -> Scene:
        # Steps through all scenes in a fixed shuffled order, round after round.
        order = np.random.default_rng(number // len(self.scenes)).permutation(len(self.scenes))
        return self.scenes[order[number % len(self.scenes)]]

    @torch.no_grad()
    def add(self, num_videos: int) -> None:
        """Encode `num_videos` more videos on every rank."""
        first = self.count + self.run.rank * num_videos
        numbers = range(first, first + num_videos)
        videos = [draw(self.scene(i), MAX_FRAMES, np.random.default_rng((4, i)), SIZE) for i in numbers]
        pixels = torch.from_numpy(np.stack(videos)).to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with autocast(self.device, self.dtype):
            latents = self.vae.encode(pixels).latent_dist.mode().float()
        normalized = ((latents - self.mean) / self.std).cpu().numpy().astype(np.float16)
        for number, latent in zip(numbers, normalized, strict=True):
            self.latents[number % CAPACITY] = latent
        self.count += num_videos * self.run.world_size

    def batch(self, size: int, latent_frames: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Return a random batch from the pool: latents `[B, C, F, h, w]`, and a caption for each video."""
        # Another rank may still be writing the newest ones.
        written = self.count - self.run.world_size
        numbers = rng.integers(max(0, self.count - CAPACITY), written, size)
        latents = np.stack([self.latents[i % CAPACITY, :, :latent_frames] for i in numbers])
        captions = [caption(self.scene(int(i)), rng) for i in numbers]
        return torch.from_numpy(latents).to(self.device).float(), captions


class TrainingAttention:
    """Attention processor for training: Wan's arithmetic, made fast for a few hundred tokens on a CPU.

    The attention is written out, because the fused kernel's backward pass takes a quarter of a step here.
    Cross-attention reads the words and one key that stands for all the padding (`pad_bias`).
    """

    def __init__(self) -> None:
        self.bias: Tensor | None = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(source)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(source).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
        # Matrix products are taken in the autocast type, the softmax in fp32.
        scores = (query * query.shape[-1] ** -0.5).transpose(1, 2) @ key.permute(0, 2, 3, 1)
        if encoder_hidden_states is not None:
            assert self.bias is not None
            scores = scores + self.bias.to(scores.dtype)
        attended = scores.softmax(dim=-1) @ value.transpose(1, 2)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to neighbouring pairs of channels of `x` `[B, S, H, D]`."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(3)


def patch_as_linear(patch_embedding: nn.Conv3d, latents: Tensor) -> Tensor:
    """Compute a 1x2x2 convolution of stride 1x2x2 as a matrix product, whose backward pass is much faster."""
    _frames, height, width = latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2
    patches = latents.unflatten(4, (width, 2)).unflatten(3, (height, 2)).permute(0, 2, 3, 5, 1, 4, 6)
    tokens = F.linear(patches.flatten(4), patch_embedding.weight.flatten(1), patch_embedding.bias)
    return tokens.permute(0, 4, 1, 2, 3)


class TextToLatents(nn.Module):
    """The two models that are trained, text encoder and transformer, and their flow-matching loss."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.text_encoder = build_text_encoder(len(self.tokenizer))
        self.transformer = WanTransformer3DModel(**CONFIG)
        self.attention = TrainingAttention()
        patch_embedding = self.transformer.patch_embedding
        patch_embedding.forward = functools.partial(patch_as_linear, patch_embedding)
        text_embedder = self.transformer.condition_embedder.text_embedder
        nn.init.zeros_(text_embedder.linear_1.bias)
        nn.init.zeros_(text_embedder.linear_2.bias)
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)
        for block in self.transformer.blocks:
            block.attn1.set_processor(self.attention)
            block.attn2.set_processor(self.attention)
            # The padding's 500 keys would drown the words: their common key, which is the bias, starts
            # out pointing away from every query.
            nn.init.constant_(block.attn2.to_q.bias, 0.4)
            nn.init.constant_(block.attn2.to_k.bias, -0.03)
            nn.init.constant_(block.attn2.norm_q.weight, 1.5)
            nn.init.constant_(block.attn2.norm_k.weight, 1.5)

    def load(self, folder: Path) -> None:
        """Load the weights of text encoder and transformer from a pipeline folder."""
        transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
        self.transformer.load_state_dict(transformer.state_dict())
        text_encoder = UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder")
        self.text_encoder.load_state_dict(text_encoder.state_dict())

    def forward(self, noisy: Tensor, timestep: Tensor, captions: list[str]) -> Tensor:
        tokens = self.tokenizer(captions, padding=True, return_tensors="pt").to(noisy.device)
        text = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        lengths = tokens.attention_mask.sum(dim=1)
        self.attention.bias = pad_bias(lengths, text.shape[1])
        text = F.pad(text * tokens.attention_mask[..., None], (0, 0, 0, 1))
        return self.transformer(noisy, timestep, text, return_dict=False)[0]

    def loss(self, latents: Tensor, captions: list[str], *, by_frame: bool) -> Tensor:
        """Return the mean squared error of the velocity, with a noise level for each video or for each frame.

        The error has the same weight everywhere. A larger weight at the object would depend on the answer, so
        that in doubt the model would draw objects too large, or two of them.
        """
        sigma = _noise_levels(latents.shape[0], latents.shape[2], by_frame, latents.device)
        timestep = 1000 * sigma
        if by_frame:
            patch_time, patch_height, patch_width = CONFIG["patch_size"]
            tokens_a_frame = (latents.shape[3] // patch_height) * (latents.shape[4] // patch_width)
            timestep = timestep[:, ::patch_time].repeat_interleave(tokens_a_frame, dim=1)
        else:
            timestep = timestep[:, 0]
        sigma = sigma[:, None, :, None, None]
        noise = torch.randn_like(latents)
        velocity = self((1 - sigma) * latents + sigma * noise, timestep, captions)
        return (velocity.float() - (noise - latents)).square().mean()


def _noise_levels(batch: int, frames: int, by_frame: bool, device: torch.device) -> Tensor:
    """Return random noise levels [batch, frames], shifted towards noise.

    They are shifted because a direction of motion is decided above sigma 0.9 or not at all. With a noise
    level for each frame, the first frame has less noise than the others, which then have to follow from it as
    the caption says. In noise alone, a model that knows positions only by their distance, as with RoPE,
    hardly finds out what left and right are. Nor would it if the known frame could be anywhere, because what
    is to the right of the past is to the left of the future.
    """
    uniform = torch.rand(batch, 1, device=device)
    sigma = (SHIFT * uniform / (1 + (SHIFT - 1) * uniform)).expand(batch, frames)
    if not by_frame:
        return sigma
    first = sigma[:, :1] * torch.rand(batch, 1, device=device)
    return torch.cat([first, sigma[:, 1:]], dim=1)


def train(
    folder: Path,
    vae_folder: Path,
    minutes: float,
    batch: int,
    *,
    init: Path | None = None,
    lr: float = 1.5e-3,
) -> None:
    """Train for a number of minutes, counted over all starts, and write `folder/pipeline`.

    batch: number of videos of 33 frames in each rank's batch. init: pipeline folder whose weights to start
    from; None: random weights.
    """
    device, dtype = device_and_dtype()
    torch.manual_seed(0)
    model = TextToLatents()
    if init is not None:
        model.load(init)
    model = model.to(device)
    vae = AutoencoderKLWan.from_pretrained(vae_folder).to(device)
    run = Run(minutes, lr, model, decay=0.995)
    pool = Pool(folder, vae, run)
    pool.count = load_training_state(folder, run).get("videos", 0)
    first_videos = 40 * batch * run.world_size
    while pool.count < first_videos:
        pool.add(10)
        if run.rank == 0:
            print(f"encoded {pool.count} of the first {first_videos} videos", flush=True)
    run.begin()
    while not run.finished:
        # Seeds follow from step and rank, so that a resumed run draws what it would have drawn without the
        # stop.
        rng = np.random.default_rng((5, run.step, run.rank))
        torch.manual_seed(run.step * run.world_size + run.rank)
        # The same length on every rank, so that none waits for another.
        draw_length = np.random.default_rng(run.step)
        by_frame = run.step % 2 == 1
        if by_frame:  # short: in a longer clip what has gone half-way round is where it is either way
            frames = int(draw_length.integers(2, 5))
        elif run.step % 4:
            frames = int(draw_length.integers(2, LATENT_FRAMES + 1))
        else:
            frames = DEFAULT_LATENT_FRAMES
        size = max(1, round(batch * DEFAULT_LATENT_FRAMES / frames))
        # Entered anew each step: autocast keeps its bf16 copies of the weights until it is left.
        with autocast(device, dtype):
            loss = model.loss(*pool.batch(size, frames, rng), by_frame=by_frame)
        run.update(loss, f"{pool.count} videos")
        pool.add(1)
        if run.checkpoint_due(seconds=240):
            save(run, pool, folder)
    if run.rank == 0:
        save(run, pool, folder)


def save(run: Run, pool: Pool, folder: Path) -> None:
    """Write the state to resume from, and the averaged model as a pipeline folder."""
    save_training_state(folder, run, videos=pool.count)
    save_pipeline(run.average, pool.vae, folder / "pipeline")


def save_pipeline(model: TextToLatents, vae: AutoencoderKLWan, folder: Path) -> None:
    """Write the model as a diffusers folder, which `WanPipeline.from_pretrained` and `paradit` load."""
    WanPipeline(
        tokenizer=model.tokenizer,
        text_encoder=model.text_encoder,
        vae=vae,
        transformer=model.transformer,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ).save_pretrained(folder)
    (folder / "paradit.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n")
