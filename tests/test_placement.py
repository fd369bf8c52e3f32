"""Placements: what cannot be is refused by name, and what is left open becomes a few ways to try."""

from pathlib import Path
from typing import Any

import pytest

from paradit.errors import InputError
from paradit.kernels import KERNELS, check_kernel_on
from paradit.placement import Form, Placement
from paradit.sampling.remembered import Remembered


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"attention": "magic"}, "attention must be one of auto, ulysses, pipesp, .* got 'magic'"),
        ({"chunks": 0}, "chunks must be at least 1, got 0"),
        ({"attention": "ring", "chunks": 2}, "chunks are pipesp's, and attention is 'ring'"),
        ({"cfg_degree": 2, "interleave": True}, "interleave needs both branches on a rank"),
        ({"ring_degree": 2}, "ring_degree and mesh are usp's, and attention is 'auto'"),
        ({"mesh": "ulysses,ring"}, "ring_degree and mesh are usp's"),
        ({"mesh": "ring"}, "mesh must be ring,ulysses or ulysses,ring, got 'ring'"),
        ({"attention": "usp", "ring_degree": 4}, "6 ranks do not divide into a ring of 4: .* 1, 2, 3, 6"),
        ({"attention": "usp", "ring_degree": 0}, "ring_degree must be at least 1, got 0"),
        ({"kernel": "quick"}, "kernel must be one of native, .* got 'quick'"),
        ({"kernel": "flash"}, "kernel 'flash' needs the package 'flash_attn'; there are: native, "),
        ({"kernel": "_native_math", "attention": "ring"}, "ring needs a kernel .* log-sum-exp: native, not"),
    ],
)
def test_refused_by_name(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Placement(ranks=6, **asked)


def test_kernels_say_where_they_run() -> None:
    check_kernel_on("native", "cpu", "fp32")
    check_kernel_on("_native_flash", "cuda", "bf16")
    with pytest.raises(InputError, match=r"'_native_flash' needs a GPU.* on a CPU: native, _native_math"):
        check_kernel_on("_native_flash", "cpu", "bf16")
    with pytest.raises(InputError, match="kernel '_native_flash' takes bf16, got fp32"):
        check_kernel_on("_native_flash", "cuda", "fp32")


def test_the_names_are_those_of_diffusers() -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert set(KERNELS) <= {backend.value for backend in AttentionBackendName}


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
    assert Placement(**asked).forms(num_heads=12) == [
        Form(attention=name, chunks=chunks, interleave=interleave) for name, chunks, interleave in forms
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
