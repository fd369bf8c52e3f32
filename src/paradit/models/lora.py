"""LoRA files as a model's spec names them, and what their headers say. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paradit.config.errors import InputError
from paradit.config.limits import shown
from paradit.models.folder_json import read_header

Expert = Literal["high", "low"]
EXPERTS: tuple[Expert, ...] = ("high", "low")
"""Names of a model's two experts, in the order of its transformers: for high noise, and for low noise."""
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "text_encoder": "a LoRA of the text encoder",
    "lora_te": "a LoRA of the text encoder",
}
"""Mapping from parts of tensor names to the kinds of adapters that have them; none of them can be merged."""
_PICKLED = (b"PK", b"\x80\x02")
"""First bytes of files that torch.save writes, in its present form and its earlier one."""
_LAYER = re.compile(r"(?:^|[._])(single_)?(?:double_|transformer_)?blocks[._](\d+)[._]")
_QUERY = re.compile(r"(?:to_q|attn[._]q|img_attn_qkv)\.(?:lora_A|lora_down)\.weight$")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA file that is merged into a model's weights when they are loaded."""

    file: str
    """Name of the file as the user gave it: a path, a hub id with a path in it, or a bundled LoRA's name."""
    path: str
    """Absolute path of the file; empty if it is on the hub, and not downloaded yet."""
    sha256: str
    """Hash of the file's content; empty like `path`."""
    scale: float = 1.0
    expert: Expert | None = None
    """Expert whose weights the LoRA changes; None: the model's only transformer."""

    def __str__(self) -> str:
        scale = "" if self.scale == 1 else f"={self.scale:g}"
        return f"{self.file}{scale}{f'@{self.expert}' if self.expert else ''}"

    @property
    def index(self) -> int:
        """Index of the transformer whose weights the LoRA changes."""
        return EXPERTS.index(self.expert) if self.expert else 0

    def about(self) -> dict[str, Any]:
        """Return a description as plain values, without the folder that holds the file."""
        about = {"file": Path(self.path).name, "sha256": self.sha256, "scale": self.scale}
        return about | ({"expert": self.expert} if self.expert else {})


def layer_of(name: str) -> tuple[bool, int] | None:
    """Return the layer that a tensor belongs to; None if it belongs to none.

    The layer is given by whether it is in a list of single-stream blocks, and by its index in its list. name:
    the tensor's name in a model, or in any form of LoRA file.
    """
    found = _LAYER.search(name)
    return (bool(found[1]), int(found[2])) if found else None


Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the tensors in a LoRA file, by their names."""


def read_shapes(file: str, path: Path) -> Shapes:
    """Return the shapes of a file's tensors, and refuse a file that is not whole. Raises InputError.

    file: the file's name in error messages.
    """
    try:
        length, tensors = read_header(path)
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"lora {file!r} cannot be read: {error.strerror}") from None
    except ValueError:
        with path.open("rb") as stream:
            pickled = stream.read(2) in _PICKLED
        again = f"lora {file!r} is not a safetensors file, or is cut off: download it again"
        raise InputError(not_safetensors(file) if pickled else again) from None
    end = 8 + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if end > size:
        raise InputError(f"lora {file!r} is cut off: it has {size} of {end} bytes")
    return {key: tensor.shape for key, tensor in tensors.items()}


def check_shapes(file: str, shapes: Shapes, *, width: int, layers: int, model: str) -> None:
    """Refuse a file that is not a LoRA, or whose tensors show that it is for another model.

    file: the file's name in error messages. width: number of channels of the model's tokens. layers: number
    of the model's layers. model: the model's name. Raises InputError.
    """
    _check_kind(file, shapes)
    widths = {shape[1] for key, shape in shapes.items() if _QUERY.search(key) and shape[1:]}
    highest = max((layer[1] for key in shapes if (layer := layer_of(key))), default=0)
    what = (
        f"layers that are {max(widths)} channels wide, and {model!r} has {width}"
        if widths - {width}
        else f"{highest + 1} layers, and {model!r} has {layers}"
        if highest >= layers
        else None
    )
    if what is not None:
        raise InputError(f"lora {file!r} is for another model: it has {what}")


def not_safetensors(file: str) -> str:
    """Return the error message for a file of another format, which may run code when it is read."""
    return (
        f"lora {file!r} is not a safetensors file: convert it, by "
        "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'NAME.safetensors')"
    )


def _check_kind(file: str, tensors: Collection[str]) -> None:
    for part, kind in _OTHER_KINDS.items():
        if found := next((key for key in tensors if part in key), None):
            raise InputError(f"lora {file!r} cannot be merged: it is {kind} ({shown(found)})")
    if not any("lora" in key for key in tensors):
        some = ", ".join(sorted(tensors)[:2]) or "nothing"
        raise InputError(f"lora {file!r} has no LoRA keys: it holds {some}")
