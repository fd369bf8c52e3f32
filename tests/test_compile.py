"""`torch.compile` of a transformer's pieces: the same prediction, compiled once for all layers and steps."""

import pytest
import torch

from paradit.attention.local import local
from paradit.models.wan.transformer import WanTransformer
from paradit.sampling.forward import forward, run
from test_wan_seam import inputs, transformer


@torch.no_grad()
@pytest.mark.parametrize("variant", ["wan21", "wan22_ti2v"])
def test_wan_pieces_compile_once(variant: str) -> None:
    torch.compiler.reset()
    model = transformer(variant)
    latents, text = inputs(model, (1, 2, 4, 6))
    pieces, plain = WanTransformer(model, compile=True), WanTransformer(model)
    layout, context = pieces.layout((2, 4, 6)), pieces.context(text)

    def predict(wan: WanTransformer, timestep: float) -> torch.Tensor:
        tokens = wan.embed(latents, torch.tensor([timestep]), context, layout)
        return wan.unpatchify(run(forward(wan, tokens, local())), layout)

    torch._dynamo.utils.counters.clear()
    predict(pieces, 900.0)
    # One graph a piece (normed, value, key, query, finish), not one a piece and layer.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 5
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = predict(pieces, 700.0)
    torch.testing.assert_close(compiled, predict(plain, 700.0), rtol=0, atol=1e-5)
