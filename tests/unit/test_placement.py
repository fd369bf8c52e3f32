"""Placements: impossible ones are refused by name, and open settings become a few candidates."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from paradit.attention.registry import Choice
from paradit.attention_backends import ATTENTION_BACKENDS, check_backend_on
from paradit.config.errors import InputError
from paradit.config.methods.method import method_of, resolve
from paradit.config.options import RenamedWarning
from paradit.config.placement import Placement
from paradit.config.placement_text import read_placement
from paradit.config.requests import Request
from paradit.models.spec import ModelSpec, read_spec
from paradit.scheduling.rank_memory import on_one_device
from paradit.scheduling.stages import PLACED, STAGES
from paradit.tuning.remembered import Remembered
from tiny import save_folder


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"attention": "magic"}, "attention .* auto, ulysses, pipesp, .* got 'magic'"),
        ({"chunks": 0}, "chunks must be at least 1, got 0"),
        ({"attention": "ring", "chunks": 2}, "chunks needs attention pipesp, got 'ring'"),
        ({"cfg_degree": 2, "interleave": True}, "interleave needs both branches on a rank"),
        ({"ring_degree": 2}, "ring_degree and mesh .*usp.* 'auto'"),
        ({"mesh": "ulysses,ring"}, "ring_degree and mesh need attention usp"),
        ({"mesh": "ring"}, "mesh .* ring,ulysses .* ulysses,ring, got 'ring'"),
        ({"attention": "usp", "ring_degree": 4}, "6 ranks .* ring of 4: .* 1, 2, 3, 6"),
        ({"attention": "usp", "ring_degree": 0}, "ring_degree must be at least 1, got 0"),
        ({"replicas": 0}, "replicas must be at least 1, got 0"),
        ({"replicas": 4}, "6 ranks .* 4 replicas: .* 1, 2, 3, 6"),
        (
            {"replicas": 2, "decode": (5,)},
            "2 replicas .* decode has ranks of its own",
        ),
        ({"replicas": 2, "cfg_degree": 2}, "3 ranks cannot be divided into 2 guidance branches"),
        ({"replicas": 6, "attention": "usp"}, "1 ranks cannot be divided into a ring of 2"),
        ({"attention_backend": "quick"}, "attention_backend .* native, .* got 'quick'"),
        (
            {"attention_backend": "flash"},
            "attention_backend 'flash' .* 'flash_attn'.*: native, ",
        ),
        (
            {"attention_backend": "_native_math", "attention": "ring"},
            "ring .* log-sum-exp: native, not",
        ),
    ],
)
def test_refused_by_name(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Placement.of(ranks=6, **asked)


@pytest.mark.parametrize("make", [Placement, Placement.of])
def test_former_names_warn(make: Callable[..., Placement]) -> None:
    with pytest.warns(RenamedWarning, match="kernel .* attention_backend"):
        made = make(kernel="_native_math")
    assert made == Placement(attention_backend="_native_math")


def test_kernels_say_where_they_run() -> None:
    check_backend_on("native", "cpu", "fp32")
    check_backend_on("_native_flash", "cuda", "bf16")
    with pytest.raises(InputError, match=r"'_native_flash' .* GPU.* CPU, use native, _native_math"):
        check_backend_on("_native_flash", "cpu", "bf16")
    with pytest.raises(InputError, match=r"'_native_flash' .* bf16, got fp32"):
        check_backend_on("_native_flash", "cuda", "fp32")


def test_the_names_are_those_of_diffusers() -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert set(ATTENTION_BACKENDS) <= {backend.value for backend in AttentionBackendName}


@pytest.mark.parametrize(
    ("asked", "forms"),
    [
        ({"ranks": 1}, [("ulysses", 1, False)]),
        ({"ranks": 2, "cfg_degree": 2}, [("ulysses", 1, False)]),
        ({"ranks": 2, "attention": "ulysses"}, [("ulysses", 1, False)]),
        ({"ranks": 2, "attention": "ulysses", "interleave": True}, [("ulysses", 1, True)]),
        ({"ranks": 2, "attention": "pipesp", "chunks": 3}, [("pipesp", 3, False)]),
        ({"ranks": 4, "attention": "pipesp"}, [("pipesp", n, False) for n in (1, 2, 3)]),
        ({"ranks": 4, "cfg_degree": 2}, [("pipesp", n, False) for n in (1, 2, 6)]),
        ({"ranks": 4}, [("pipesp", n, interleave) for n in (1, 2, 3) for interleave in (False, True)]),
        ({"ranks": 4, "interleave": False}, [("pipesp", n, False) for n in (1, 2, 3)]),
        ({"ranks": 4, "attention": "ring"}, [("ring", 1, False)]),
    ],
)
def test_forms_the_plainest_first(asked: dict[str, Any], forms: list[tuple[str, int, bool]]) -> None:
    assert Placement.of(**asked).choices(num_heads=12) == [
        Choice.of(name, chunks=chunks if name == "pipesp" else None, interleave=interleave)
        for name, chunks, interleave in forms
    ]


def test_what_was_quickest_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "quickest.json"
    assert Remembered(path).find("a shape") is None
    Remembered(path).keep("a shape", "ulysses")
    Remembered(path).keep("another", "pipesp")
    assert Remembered(path).find("a shape") == "ulysses"
    assert [file.name for file in path.parent.iterdir()] == ["quickest.json"]
    path.write_text("{broken")
    assert Remembered(path).find("a shape") is None
    path.chmod(0o400)
    Remembered(tmp_path / "cache" / "quickest.json" / "no folder").keep("a shape", "ulysses")


def test_what_many_remember_at_once_is_all_there(tmp_path: Path) -> None:
    path = tmp_path / "quickest.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: Remembered(path).keep(f"shape {number}", "ulysses"), range(40)))
    assert {Remembered(path).find(f"shape {number}") for number in range(40)} == {"ulysses"}


def test_replicas() -> None:
    two = Placement(ranks=6, replicas=2, attention="ulysses")
    assert (two.replica_ranks, two.branch_ranks, two.denoise_ranks, two.decode_ranks) == (
        3,
        3,
        (0, 1, 2),
        (0,),
    )
    assert [two.stages_of(rank) for rank in range(6)] == [PLACED, ("denoise",), ("denoise",)] * 2
    assert [two.work_of(rank) for rank in range(6)] == [STAGES, ("denoise",), ("denoise",)] * 2
    assert two.replica == Placement(ranks=3, attention="ulysses")
    assert read_placement(two.to_json()) == two


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read_spec(save_folder("wan21", tmp_path_factory.mktemp("models") / "tiny", heads=4))


def needed(spec: ModelSpec, placement: Placement, **asked: Any) -> list[dict[str, int]]:
    request = resolve(Request(prompt="a", width=128, height=128, num_frames=9, **asked), spec)
    return method_of(request).memory_by_rank(placement, request, spec, 2)


def test_one_rank_needs_what_one_process_needs(spec: ModelSpec) -> None:
    whole = spec.memory_bytes(9, 128, 128, 2)
    assert needed(spec, Placement()) == [whole]
    assert needed(spec, Placement(ranks=2, replicas=2)) == [whole, whole]


def test_a_rank_needs_what_its_stages_need(spec: ModelSpec) -> None:
    whole = spec.memory_bytes(9, 128, 128, 2)
    denoise, decode, encode = needed(spec, Placement(ranks=3, denoise=(0,), decode=(1,), encode=(2,)))
    sizes = {weights.component: weights.parameters for weights in spec.weights}
    assert denoise["weights"] == 2 * sizes["transformer"]
    assert decode["weights"] == 4 * sizes["vae"]
    assert encode["weights"] == encode["peak"] == 2 * sizes["text_encoder"]
    assert (denoise["decode"], decode["decode"]) == (0, whole["decode"])
    assert (denoise["activations"], decode["activations"]) == (whole["activations"], 0)
    for parts in (denoise, decode):
        assert parts["peak"] == sum(parts.values()) - parts["peak"]


def test_activations_are_shared(spec: ModelSpec) -> None:
    (alone,) = needed(spec, Placement(), guidance_scale=1.0)
    four = needed(spec, Placement(ranks=4), guidance_scale=1.0)
    tokens, width = spec.tokens(9, 128, 128), spec.transformers[0].width
    # Every rank also embeds all tokens.
    assert sum(parts["activations"] for parts in four) == alone["activations"] + 3 * tokens * width * 2
    # Both guidance branches in one batch, or each on ranks of its own.
    both, one = (needed(spec, Placement(ranks=4, cfg_degree=degree))[0] for degree in (1, 2))
    assert both["text_cache"] == 2 * one["text_cache"] == 2 * four[0]["text_cache"]
    assert both["activations"] < one["activations"] + tokens * width * 2


def test_the_fullest_device() -> None:
    by_rank = [{"weights": 5, "peak": 6}, {"weights": 1, "peak": 9}, {"weights": 3, "peak": 3}]
    assert on_one_device(by_rank, sharing=1) == {"weights": 5, "peak": 9}
    assert on_one_device(by_rank, sharing=2) == {"weights": 8, "peak": 15}
