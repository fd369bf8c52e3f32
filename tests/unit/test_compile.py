"""`torch.compile` of a transformer's parts: equal predictions, compiled once for all layers and steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from paradit.models.hunyuan_video.transformer import HunyuanVideoTransformer
from paradit.models.wan.transformer import WanTransformer
from seam_inputs import hunyuan_inputs, wan_inputs
from tiny import forward, hunyuan_transformer, transformer

Predict = Callable[[bool, float], Tensor]


def wan(variant: str) -> Predict:
    model = transformer(variant)
    latents, text = wan_inputs(model, (1, 2, 4, 6))
    return predictor(WanTransformer, model, latents, (text,))


def hunyuan_video() -> Predict:
    model = hunyuan_transformer()
    latents, _, prompt = hunyuan_inputs(model, (1, 2, 4, 6))
    return predictor(HunyuanVideoTransformer, model, latents, prompt)


def predictor(cut: Any, model: Any, latents: Tensor, prompt: tuple[Tensor, ...]) -> Predict:
    """Return a function from (compiled or not, timestep) to the prediction of the model cut into blocks."""
    pieces = {compile: cut(model, compile=compile) for compile in (False, True)}
    layout = pieces[False].layout(tuple(latents.shape[2:]))

    @torch.no_grad()
    def predict(compile: bool, timestep: float) -> Tensor:
        transformer = pieces[compile]
        context = transformer.context(*prompt)
        tokens = transformer.embed(latents, torch.tensor([timestep]), context, layout)
        return transformer.unpatchify(forward(transformer, tokens), tokens.layout)

    return predict


@pytest.mark.parametrize(
    ("make", "num_graphs"),
    [
        # normed, value, key, query, finish
        (lambda: wan("wan21"), 5),
        (lambda: wan("wan22_ti2v"), 5),
        # Double and single blocks each need these. A double block norms the video and the text, which differ
        # in length. After the first single block both are views of one tensor, with its strides, so norm and
        # finish are compiled once more.
        (hunyuan_video, 13),
    ],
    ids=["wan21", "wan22_ti2v", "hunyuan_video"],
)
def test_pieces_compile_once(make: Callable[[], Predict], num_graphs: int) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    predict = make()
    predict(True, 900.0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_graphs
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = predict(True, 700.0)
    torch.testing.assert_close(compiled, predict(False, 700.0), rtol=0, atol=1e-5)
