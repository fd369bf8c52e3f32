"""Operations of the autoencoders, as torch counts them, and the published configurations."""

from typing import Any

import pytest
import torch
from diffusers.video_processor import VideoProcessor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from paradit.distributed.agreement import Agreement
from paradit.models.hunyuan_video import spec as hunyuan_spec
from paradit.models.hunyuan_video.decoder import HunyuanVideoDecoder
from paradit.models.open_sora_plan import vae_spec as open_sora_vae_spec
from paradit.models.wan.vae_spec import vae_spec
from paradit.stages.decode import pictures
from tiny import hunyuan_vae, vae, wf_vae


def counted(decode: Any) -> int:
    # The counter does not know the fused CPU kernel; the math backend consists of matrix products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        decode()
    return counter.get_total_flops()


@pytest.mark.parametrize("variant", ["wan21", "wan22_ti2v"])
def test_wan_decode(variant: str) -> None:
    model = vae(variant)
    spec = vae_spec(model.config)
    side = spec.spatial_compression
    latents = torch.randn(1, spec.z_dim, 3, 4, 6)
    assert counted(lambda: model.decode(latents)) == spec.decode_flops(9, 4 * side, 6 * side)


@pytest.mark.parametrize("variant", ["wan21", "wan22_ti2v"])
@pytest.mark.parametrize("num_frames", [1, 9])
def test_wan_encode(variant: str, num_frames: int) -> None:
    model = vae(variant)
    spec = vae_spec(model.config)
    side = spec.spatial_compression
    video = torch.zeros(1, 3, num_frames, 4 * side, 6 * side)
    assert counted(lambda: model.encode(video)) == spec.encode_flops(num_frames, 4 * side, 6 * side)


# One tile, one group; tiles in height only, three groups; in both.
@pytest.mark.parametrize("shape", [(2, 4, 6), (7, 34, 6), (4, 34, 30)])
def test_hunyuan_decode(shape: tuple[int, ...]) -> None:
    model = hunyuan_vae()
    frames, height, width = shape
    latents = torch.randn(1, 16, *shape)
    spec = hunyuan_spec.vae_spec(model.config)
    expected = spec.decode_flops(4 * frames - 3, 8 * height, 8 * width)
    decoder = HunyuanVideoDecoder(model, VideoProcessor(), latents)
    tiles = spec.grid(8 * height, 8 * width, spec.TILE_PIXELS)
    alone = Agreement(None, torch.device("cpu"))
    assert counted(lambda: list(pictures(decoder, tiles, alone))) == expected


@pytest.mark.parametrize("num_frames", [1, 9])
def test_wf_vae(num_frames: int) -> None:
    model: Any = wf_vae()
    model.to("meta")
    spec = open_sora_vae_spec.vae_spec(model.config)
    latents = torch.zeros(1, *spec.latent_shape(num_frames, 32, 48), device="meta")
    assert counted(lambda: model.decode(latents)) == spec.decode_flops(num_frames, 32, 48)
    video = torch.zeros(1, 3, num_frames, 32, 48, device="meta")
    assert counted(lambda: model.encode(video)) == spec.encode_flops(num_frames, 32, 48)
