"""`paradit.parallelize` on pipelines whose attachments cannot be honoured, which are refused by name."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import ContextParallelConfig, hooks
from diffusers.hooks.smoothed_energy_guidance_utils import (
    SmoothedEnergyGuidanceConfig,
    _apply_smoothed_energy_guidance_hook,
)
from peft import LoraConfig
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import paradit
from paradit.config.errors import InputError
from paradit.distributed.world import World
from paradit.testing import run_world
from pipelines import FAMILIES, attention, blocks, generate, like, load
from seam_inputs import wan_inputs
from tiny import save_folder, save_hunyuan_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"wan21": save_folder("wan21", root / "wan21"), "hunyuan": save_hunyuan_folder(root / "hunyuan")}


class Other(hooks.ModelHook):
    """Hook of an unknown class."""


class OtherProcessor:
    _attention_backend = None
    _parallel_config = None


def cached(config: Any) -> Callable[[Any], None]:
    return lambda pipe: pipe.transformer.enable_cache(config)


def timestep() -> int:
    return 700


def block_list(pipe: Any) -> str:
    """Return the name of the first list of blocks, because diffusers by itself takes any of several."""
    return "blocks" if hasattr(pipe.transformer, "blocks") else "transformer_blocks"


def skip(**options: Any) -> Callable[[Any], None]:
    return lambda pipe: hooks.apply_layer_skip(
        pipe.transformer, hooks.LayerSkipConfig([1], fqn=block_list(pipe), **options)
    )


def group_offload(kind: str) -> Callable[[Any], None]:
    return lambda pipe: pipe.transformer.enable_group_offload(
        torch.device("cpu"), offload_type=kind, num_blocks_per_group=1
    )


def unknown(where: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    registry = hooks.HookRegistry.check_if_exists_or_initialize
    return lambda pipe: registry(where(pipe)).register_hook(Other(), "x")


def compile_transformer(pipe: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer)


def compile_block(pipe: Any) -> None:
    blocks(pipe)[0] = torch.compile(blocks(pipe)[0])


def patch_attention(pipe: Any) -> None:
    def quick(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError

    attention(pipe).forward = quick


def blur_queries(pipe: Any) -> None:
    config = SmoothedEnergyGuidanceConfig([0], fqn=block_list(pipe))
    _apply_smoothed_energy_guidance_hook(pipe.transformer, config, 1.0)


def one_block_by_another_backend(pipe: Any) -> None:
    attention(pipe).processor._attention_backend = "_native_math"


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "FirstBlockCache": (
        cached(hooks.FirstBlockCacheConfig(threshold=0.1)),
        r"the step cache FirstBlockCacheConfig at pipe\.transformer: call its disable_cache\(\)",
    ),
    "PyramidAttentionBroadcast": (
        cached(hooks.PyramidAttentionBroadcastConfig(2, current_timestep_callback=timestep)),
        "the step cache PyramidAttentionBroadcastConfig",
    ),
    "FasterCache": (
        cached(hooks.FasterCacheConfig(tensor_format="BCFHW", current_timestep_callback=timestep)),
        "the step cache FasterCacheConfig",
    ),
    "MagCache": (
        cached(hooks.MagCacheConfig(threshold=0.1, calibrate=True)),
        "the step cache MagCacheConfig",
    ),
    "SeaCache": (cached(hooks.SeaCacheConfig()), "the step cache SeaCacheConfig"),
    "TaylorSeerCache": (
        cached(hooks.TaylorSeerCacheConfig()),
        "the step cache TaylorSeerCacheConfig",
    ),
    "TextKVCache": (cached(hooks.TextKVCacheConfig()), "the step cache TextKVCacheConfig"),
    "a cache put on by hand": (
        lambda pipe: hooks.apply_first_block_cache(
            pipe.transformer, hooks.FirstBlockCacheConfig(threshold=0.1)
        ),
        r"the step cache FirstBlockCache at \S+blocks\.0: remove its hook 'fbc_leader_block_hook'",
    ),
    "layer skip": (skip(), r"layer skip at \S+blocks\.1: remove its hook 'layer_skip_hook'"),
    "layer skip of feed-forwards": (skip(skip_attention=False), r"layer skip at \S+blocks\.1\.ff"),
    "group offload by block": (
        group_offload("block_level"),
        r"group offload .*enable_model_cpu_offload\(\)",
    ),
    "group offload by leaf": (group_offload("leaf_level"), r"group offload .*enable_model_cpu_offload\(\)"),
    "sequential offload": (
        lambda pipe: accelerate.cpu_offload(pipe.transformer, torch.device("cpu"), offload_buffers=True),
        r"sequential CPU offload .*enable_model_cpu_offload\(\)",
    ),
    "torch.compile": (compile_transformer, r"torch\.compile at pipe\.transformer: leave it uncompiled"),
    "compile()": (lambda pipe: pipe.transformer.compile(), r"torch\.compile at pipe\.transformer:"),
    "compile_repeated_blocks()": (
        lambda pipe: pipe.transformer.compile_repeated_blocks(),
        r"torch\.compile at pipe\.transformer\.\w*blocks\.0:",
    ),
    "torch.compile of a block": (compile_block, r"torch\.compile at pipe\.transformer\.\w*blocks\.0:"),
    "an unknown hook": (
        unknown(lambda pipe: pipe.transformer),
        "the diffusers hook Other .* remove its hook 'x'",
    ),
    "an unknown hook on a block": (unknown(lambda pipe: blocks(pipe)[1]), r"hook Other at \S+blocks\.1:"),
    "an unknown hook on a layer": (
        unknown(lambda pipe: attention(pipe).to_q),
        r"hook Other at \S+blocks\.0\.attn1?\.to_q:",
    ),
    "a hook that needs all tokens": (blur_queries, r"hook SmoothedEnergyGuidanceHook at \S+\.to_q:"),
    "torch's hook on attention": (
        lambda pipe: attention(pipe).register_forward_hook(print),
        r"the forward hook print at \S+\.attn1?: hook a layer inside",
    ),
    "torch's hook before a block": (
        lambda pipe: blocks(pipe)[1].register_forward_pre_hook(print),
        r"the forward hook print at \S+blocks\.1:",
    ),
    "accelerate's hook on a block": (
        lambda pipe: add_hook_to_module(blocks(pipe)[0], ModelHook()),
        r"the accelerate hook ModelHook at \S+blocks\.0:",
    ),
    "an attention processor": (
        lambda pipe: attention(pipe).set_processor(OtherProcessor()),
        r"the attention processor OtherProcessor at \S+\.attn1?: set a",
    ),
    "a patched attention": (patch_attention, r"quick in place of its forward at \S+\.attn1?:"),
    "two backends": (one_block_by_another_backend, r"one attention backend, got .*_native_math"),
    "parallelize": (paradit.parallelize, "pipe.transformer is parallelized already"),
}


def refusals(_: World, folder: Path) -> dict[str, list[str]]:
    """Return the errors for each attachment, made before `parallelize` and, for Wan, after it."""
    said: dict[str, list[str]] = {}
    loaded = load(folder)
    for name, (attach, _message) in REFUSED.items():
        pipe = like(loaded)
        attach(pipe)
        said[name] = [message_of(partial(paradit.parallelize, pipe))]
        if folder.name != "hunyuan":
            pipe = like(loaded)
            paradit.parallelize(pipe)
            said[name].append(message_of(partial(attach_and_call, pipe, attach)))
    return said


def attach_and_call(pipe: Any, attach: Callable[[Any], Any]) -> None:
    attach(pipe)
    latents, text = wan_inputs(pipe.transformer, (1, 2, 4, 6))
    pipe.transformer(latents, torch.tensor([timestep()]), text)


def message_of(work: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as raised:
        work()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_is_refused_by_name(family: str, folders: dict[str, Path]) -> None:
    (said,) = run_world(refusals, 1, folders[family], timeout=240)
    for name, messages in said.items():
        for message in messages:
            assert re.search(REFUSED[name][1], message), (name, message)


def shard(pipe: Any) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for block in pipe.transformer.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(pipe.transformer, mesh=mesh)


def shard_one_block(pipe: Any) -> None:
    fully_shard(pipe.transformer.blocks[1], mesh=init_device_mesh("cpu", (2,)))


def wrap_in_fsdp(pipe: Any) -> None:
    pipe.transformer = FullyShardedDataParallel(pipe.transformer, device_id=torch.device("cpu"))


def wrap_in_ddp(pipe: Any) -> None:
    pipe.transformer = DistributedDataParallel(pipe.transformer.requires_grad_(True))


def context_parallel(pipe: Any) -> None:
    """Do what `enable_parallelism` does, which itself needs a GPU."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    config = ContextParallelConfig(ulysses_degree=2, mesh=mesh)
    config.setup(torch.distributed.get_rank(), 2, torch.device("cpu"), mesh)
    hooks.apply_context_parallel(pipe.transformer, config, pipe.transformer._cp_plan)


def sharded(_: World, folder: Path) -> list[str]:
    said = []
    for attach in (shard, shard_one_block, wrap_in_fsdp, wrap_in_ddp, context_parallel):
        pipe = load(folder)
        attach(pipe)
        said.append(message_of(partial(paradit.parallelize, pipe)))
    return said


def test_other_ways_of_using_several_ranks_are_refused(folders: dict[str, Path]) -> None:
    for said in run_world(sharded, 2, folders["wan21"]):
        found = [re.match(r"parallelize does not support (.*) at (\S+): ", message) for message in said]
        assert [match and match.groups() for match in found] == [
            ("FSDP (fully_shard)", "pipe.transformer"),
            ("FSDP (fully_shard)", "pipe.transformer.blocks.1"),
            ("FSDP", "pipe.transformer"),
            ("DDP", "pipe.transformer"),
            ("diffusers' own parallelism", "pipe.transformer"),
        ]


def patched_and_odd(_: World, folder: Path, experts: Path) -> None:
    pipe = load(folder)
    undo = paradit.parallelize(pipe)
    with pytest.raises(InputError, match="attention_kwargs takes 'scale' here, got 'other'"):
        generate(pipe, attention_kwargs={"other": 1})
    undo()

    own = type(pipe.transformer).forward

    def with_a_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own(self, *args, **kwargs)

    type(pipe.transformer).forward = with_a_cache
    with pytest.raises(InputError, match=r"with_a_cache in place of WanTransformer3DModel.forward"):
        paradit.parallelize(pipe)
    type(pipe.transformer).forward = own
    pipe.transformer.forward = lambda *args, **kwargs: own(pipe.transformer, *args, **kwargs)
    with pytest.raises(InputError, match=r"<lambda> in place of the forward of pipe.transformer"):
        paradit.parallelize(pipe)

    pipe = load(folder)
    pipe.transformer = torch.nn.Sequential(pipe.transformer)  # now the pipe has no device either
    with pytest.raises(InputError, match=r"Sequential in place of a WanTransformer3DModel"):
        paradit.parallelize(pipe)

    pipe = load(folder)
    config = LoraConfig(r=2, target_modules=[], target_parameters=["0.scale_shift_table"])
    pipe.transformer.add_adapter(config)
    with pytest.raises(InputError, match=r"ParamWrapper in place of .*WanTransformerBlock"):
        paradit.parallelize(pipe)

    pipe = load(experts)
    pipe.transformer_2.enable_cache(hooks.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(InputError, match=r"at pipe.transformer_2: call its disable_cache"):
        paradit.parallelize(pipe)
    assert "forward" not in vars(pipe.transformer)  # neither is replaced


def test_other_forwards_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    run_world(patched_and_odd, 1, folders["wan21"], save_folder("wan22_a14b", tmp_path))
