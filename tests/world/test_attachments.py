"""`paradit.parallelize` on pipelines with attachments, each of which is honoured or refused by name."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

import paradit
from messages import says
from paradit.attention.local_attention import sdpa
from paradit.distributed.world import World
from paradit.models.common.patch_forward import forward_patch
from paradit.testing import run_world
from pipelines import FAMILIES, attention, blocks, generate, like, load
from seam_inputs import hunyuan_inputs, wan_inputs
from tiny import forward, hunyuan_transformer, save_folder, save_hunyuan_folder, transformer

ADAPTED = {
    "wan21": ["to_q", "to_k", "to_v", "to_out.0", "net.2", "proj_out"],
    "hunyuan": ["to_q", "add_k_proj", "to_out.0", "norm1.linear", "proj_mlp", "net.2"],
}
"""Names of the layers that LoRA adapters are added to, by family."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model folder of each family, with two LoRA files in each: `first` and `second`."""
    root = tmp_path_factory.mktemp("models")
    made = {"wan21": save_folder("wan21", root / "wan21"), "hunyuan": save_hunyuan_folder(root / "hunyuan")}
    for family, folder in made.items():
        for seed, name in enumerate(["first", "second"]):
            pipe = load(folder)
            torch.manual_seed(seed)
            # Both matrices are random, because by default an adapter starts as zero.
            config = LoraConfig(r=4, target_modules=ADAPTED[family], init_lora_weights=False)
            pipe.transformer.add_adapter(config)
            layers = get_peft_model_state_dict(pipe.transformer)
            pipe.save_lora_weights(folder / "loras", layers, weight_name=f"{name}.safetensors")
    return made


def call(pipe: Any, **options: Any) -> Tensor:
    """Return the output of the transformer alone on random inputs."""
    module = pipe.transformer
    torch.manual_seed(5)
    if hasattr(module, "blocks"):
        latents, text = wan_inputs(module, (1, 2, 4, 6))
        return module(latents, torch.tensor([700]), text, return_dict=False, **options)[0]
    latents, timestep, prompt = hunyuan_inputs(module, (1, 2, 4, 6))
    return module(latents, timestep, *prompt, return_dict=False, **options)[0]


# Honoured attachments. Each function attaches something, and returns options for the pipeline's call, if any.


def load_loras(pipe: Any, folder: Path, *names: str) -> None:
    for name in names:
        pipe.load_lora_weights(folder / "loras", weight_name=f"{name}.safetensors", adapter_name=name)


def lora(pipe: Any, folder: Path) -> None:
    load_loras(pipe, folder, "first")


def weighted_loras(pipe: Any, folder: Path) -> None:
    load_loras(pipe, folder, "first", "second")
    pipe.set_adapters(["first", "second"], [0.3, 1.7])


def fused_lora(pipe: Any, folder: Path) -> None:
    load_loras(pipe, folder, "first")
    pipe.fuse_lora(lora_scale=0.7)


def scaled_lora(pipe: Any, folder: Path) -> dict[str, Any]:
    load_loras(pipe, folder, "first")
    return {"attention_kwargs": {"scale": 0.4}}


def switched_loras(pipe: Any, folder: Path) -> dict[str, Any]:
    """Use the first adapter in the first denoising step, and the second one from the second step on."""
    load_loras(pipe, folder, "first", "second")
    pipe.set_adapters("first")

    def switch(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe.set_adapters("second" if step == 0 else "first")
        return {}

    return {"callback_on_step_end": switch}


def fused_qkv(pipe: Any, _: Path) -> None:
    pipe.transformer.fuse_qkv_projections()


class Int8Linear(nn.Module):
    """Linear layer whose weight is stored in int8, with a scale for each row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.bias: Tensor | None
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def quantised(pipe: Any, _: Path) -> None:
    for module in list(pipe.transformer.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))


def cast_by_layer(pipe: Any, _: Path) -> None:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def backend(pipe: Any, _: Path) -> None:
    pipe.transformer.set_attention_backend("_native_math")


def offload(pipe: Any, _: Path) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offloaded_lora(pipe: Any, folder: Path) -> None:
    lora(pipe, folder)
    cast_by_layer(pipe, folder)
    offload(pipe, folder)


def hooked(pipe: Any, _: Path) -> None:
    """Add forward hooks to the whole transformer and to a layer that computes."""
    pipe.transformer.register_forward_hook(lambda _module, _args, output: (1.5 * output[0],))
    attention(pipe).to_q.register_forward_hook(lambda _module, _args, output: 1.25 * output)


def edited(pipe: Any, folder: Path) -> None:
    """Remove one transformer block, and replace the rotary embedding."""
    del blocks(pipe)[1]
    pipe.transformer.rope = (
        HunyuanVideoRotaryPosEmbed(2, 1, [8, 12, 12], theta=50.0)
        if folder.name == "hunyuan"
        else WanRotaryPosEmbed(32, (1, 2, 2), 64, theta=50.0)
    )


THROUGH_THE_PIPE = (switched_loras, offload, offloaded_lora)
"""Attachments that are compared by a whole generation; all others by one call of the transformer."""
CHANGES = (
    *(weighted_loras, fused_lora, scaled_lora, switched_loras, offloaded_lora),
    *(quantised, cast_by_layer, hooked, edited),
)
"""Attachments that change the result clearly."""
HONOURED = (*CHANGES, fused_qkv, backend, offload)


@torch.no_grad()
def differences(_: World, folders: dict[str, Path]) -> dict[tuple[str, str], list[float]]:
    """Return how far results are from those of one process with the same attachment, by name and family.

    Each list has four differences: of a result without the attachment; with it attached before `parallelize`;
    attached after it; and after `undo`.
    """
    found = {}
    for family, folder in folders.items():
        loaded = load(folder)
        for attach in HONOURED:
            result = generate if attach in THROUGH_THE_PIPE else call
            alone = like(loaded)
            results = [result(alone)]
            expected = result(alone, **(attach(alone, folder) or {}))
            for first in (True, False):
                pipe = like(loaded)
                options = attach(pipe, folder) if first else None
                undo = paradit.parallelize(pipe)
                options = (options if first else attach(pipe, folder)) or {}
                results.append(result(pipe, **(options or {})))
                undo()
            results.append(result(pipe, **(options or {})))
            found[attach.__name__, family] = [float((each - expected).abs().max()) for each in results]
            pipe.transformer.set_attention_backend("native")  # the setting is global to the process
    return found


@pytest.mark.parametrize(("num_ranks", "families"), [(1, ["wan21"]), (2, ["wan21", "hunyuan"])])
def test_is_honoured(num_ranks: int, families: list[str], folders: dict[str, Path]) -> None:
    changes = [attach.__name__ for attach in CHANGES]
    some = {family: folders[family] for family in families}
    for found in run_world(differences, num_ranks, some, timeout=240):
        for (name, family), (without, *others) in found.items():
            # One rank runs the same operations, except that offloaded tensors have another alignment.
            exact = num_ranks == 1 and "offload" not in name
            assert max(others) <= (0 if exact else 1e-5), (name, family)
            assert without > 1e-3 or name not in changes, (name, family)
            assert without > 0 or name != "backend", (name, family)


def with_the_same_prompt_embeds(_: World, folder: Path) -> list[Tensor]:
    """Return results of the first and the second adapter, in one process and then on all ranks.

    All four use the same tensor of prompt embeddings.
    """
    alone = load(folder)
    together = like(alone)
    paradit.parallelize(together)
    embeds = alone.encode_prompt("a red circle")
    results = []
    for pipe in (alone, together):
        load_loras(pipe, folder, "first", "second")
        for name in ("first", "second"):
            pipe.set_adapters(name)
            results.append(
                generate(pipe, prompt=None, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1])
            )
    return results


def test_adapters_may_change_between_calls(folders: dict[str, Path]) -> None:
    for first, second, *together in run_world(with_the_same_prompt_embeds, 2, folders["wan21"]):
        torch.testing.assert_close(together, [first, second], rtol=0, atol=1e-5)


class Counted(ModelHook):
    """Accelerate hook that records its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pre_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls.append("pre")
        return args, kwargs

    def post_forward(self, _module: nn.Module, output: Any) -> Any:
        self.calls.append("post")
        return output


def forwards(module: Any) -> dict[str, Any]:
    return {name: vars(module).get(name) for name in ("forward", "_old_forward", "_hf_hook")}


def undone_with_hooks(_: World, folder: Path) -> None:
    pipe, hook = load(folder), Counted()
    module = pipe.transformer
    for when in ("never", "before", "after", "before, until undone"):
        if when.startswith("before"):
            add_hook_to_module(module, hook)
        there = forwards(module)
        undo = paradit.parallelize(pipe)
        if when == "after":
            add_hook_to_module(module, hook)
        hook.calls.clear()
        generate(pipe)
        # Two steps with two branches each; the hook is around the forward on all ranks.
        assert hook.calls == ([] if when == "never" else ["pre", "post"] * 4)
        if when.endswith("undone"):
            remove_hook_from_module(module)
        undo()
        undo()
        if when in ("never", "before"):
            assert forwards(module) == there
        remove_hook_from_module(module)
        assert "_old_forward" not in vars(module)
        assert module.forward == type(module).forward.__get__(module)


def test_undo_puts_back_what_was_there(folders: dict[str, Path]) -> None:
    run_world(undone_with_hooks, 1, folders["wan21"])


def unlike(world: World, folder: Path) -> list[str]:
    said = []
    for change in (lora, lambda pipe, _: pipe.transformer.proj_out.weight.mul_(2)):
        pipe = load(folder)
        paradit.parallelize(pipe)
        if world.rank == 1:
            with torch.no_grad():
                change(pipe, folder)
        with pytest.raises(RuntimeError) as raised:
            generate(pipe)
        said.append(str(raised.value))
    return said


def test_names_the_rank_whose_transformer_differs(folders: dict[str, Path]) -> None:
    for said in run_world(unlike, 2, folders["wan21"]):
        attached, weight = said
        assert says(attached, "rank 1: .. attached to pipe.transformer .. rank 0")
        assert says(weight, "rank 1: .. weight of pipe.transformer .. rank 0")


SCHEDULERS = {
    "sde": DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        algorithm_type="sde-dpmsolver++",
    ),
    "stochastic": FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True),
}


def with_drawn_noise(world: World, folder: Path) -> list[tuple[Tensor, Tensor]]:
    results = []
    for scheduler in SCHEDULERS.values():
        pipe = load(folder)
        pipe.scheduler = scheduler
        torch.manual_seed(7)
        alone = generate(pipe)
        paradit.parallelize(pipe)
        torch.manual_seed(7)
        results.append((alone, generate(pipe)))
        torch.manual_seed(world.rank)
        with pytest.raises(RuntimeError, match=r"rank 1: the noise .* torch\.manual_seed\(seed\)"):
            generate(pipe)
    return results


def test_schedulers_that_draw_noise_need_one_global_seed(folders: dict[str, Path]) -> None:
    for results in run_world(with_drawn_noise, 2, folders["wan21"]):
        for alone, together in results:
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_opened_modules_are_those_that_the_seam_does_not_call(family: str) -> None:
    if family == "wan21":
        module, how = transformer("i2v"), forward_patch(["WanTransformer3DModel"])
        latents, text = wan_inputs(module, (1, 2, 4, 6), text_length=512)
        prompt: tuple[Tensor, ...] = (text, torch.randn(1, 5, module.config.image_dim))
        arguments = (latents, torch.tensor([700]), *prompt)
    else:
        module, how = hunyuan_transformer(), forward_patch(["HunyuanVideoTransformer3DModel"])
        latents, timestep, prompt = hunyuan_inputs(module, (1, 2, 4, 6))
        arguments = (latents, timestep, *prompt)
    assert how is not None
    called: set[str] = set()
    for name, part in module.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    module(*arguments)
    by_itself = called.copy()
    called.clear()
    pieces = how.cut(module, sdpa)
    tokens = pieces.embed(
        latents, arguments[1], pieces.context(*prompt), pieces.layout(tuple(latents.shape[2:]))
    )
    forward(pieces, tokens)
    opened = {re.sub(r"\b\d+\b", "*", name) for name in by_itself - called}
    assert opened == set(how.opened.modules)
