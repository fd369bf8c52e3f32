"""LoRA files as a model's spec names them, and what their headers say. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from paradit.config.errors import InputError
from paradit.config.limits import shown
from paradit.config.options import Option, decode_known, read_object
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
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Dtypes of tensors that can be merged, by safetensors' names."""
_SETTINGS = "lora_adapter_metadata"
"""Name, in a file's metadata, of the settings that diffusers writes there, as JSON."""
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


class Entry(NamedTuple):
    """Entry for one tensor in a file's header: its dtype, by safetensors' name, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Settings of the adapter that diffusers wrote into a LoRA file, for all modules and for some."""

    r: Annotated[int, Option(least=1)] = 8
    lora_alpha: Annotated[float, Option()] = 8
    rank_pattern: Annotated[Mapping[str, int] | None, Option(least=1)] = None
    """Ranks of modules that have their own, by regular expressions for the ends of the modules' names."""
    alpha_pattern: Annotated[Mapping[str, float] | None, Option()] = None
    use_rslora: bool = False
    use_dora: bool = False


def read_entries(file: str, path: Path) -> dict[str, Entry]:
    """Return the entries of a file's tensors by name, and refuse a file that is not whole. Raises InputError.

    file: the file's name in error messages.
    """
    from safetensors import SafetensorError, safe_open

    try:
        _check_length(file, path)
        with safe_open(path, framework="np") as stored:
            read_settings(file, stored.metadata())
            slices = {key: stored.get_slice(key) for key in stored.keys()}  # noqa: SIM118 (it is no mapping)
            return {key: Entry(one.get_dtype(), tuple(one.get_shape())) for key, one in slices.items()}
    except OSError as error:
        raise InputError(f"lora {file!r} cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise InputError(f"lora {file!r} is not a valid safetensors file: {error}") from None


def _check_length(file: str, path: Path) -> None:
    """Refuse a file that is cut off, or of another kind. Raises InputError, or OSError."""
    try:
        length, tensors = read_header(path)
    except ValueError:
        with path.open("rb") as stream:
            pickled = stream.read(2) in _PICKLED
        again = f"lora {file!r} is not a safetensors file, or is cut off: download it again"
        raise InputError(not_safetensors(file) if pickled else again) from None
    size = path.stat().st_size
    end = 8 + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if end > size:
        raise InputError(f"lora {file!r} is cut off: it has {size} of {end} bytes")


def read_settings(file: str, metadata: Mapping[str, str] | None) -> AdapterSettings | None:
    """Return the settings in a file's metadata; None if there are none. Raises InputError.

    file: the file's name in error messages.
    """
    text, where = (metadata or {}).get(_SETTINGS), f"lora {file!r}: {_SETTINGS} in its metadata"
    if text is None:
        return None
    written = read_object(text, where)
    if not written:
        return None
    own = {name.removeprefix("transformer."): value for name, value in written.items()}
    settings = decode_known(AdapterSettings, own, where)
    for pattern in (*(settings.rank_pattern or ()), *(settings.alpha_pattern or ())):
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"{where}: {shown(pattern)} is not a regular expression: {error}") from None
    return settings


def check_entries(file: str, entries: Mapping[str, Entry], *, width: int, layers: int, model: str) -> None:
    """Refuse a file that is not a LoRA, or whose tensors show that it is for another model.

    file: the file's name in error messages. width: number of channels of the model's tokens. layers: number
    of the model's layers. model: the model's name. Raises InputError.
    """
    _check_kind(file, entries)
    for key, entry in entries.items():
        if entry.dtype not in _DTYPES and not key.endswith(".alpha"):
            raise InputError(
                f"lora {file!r} cannot be merged: {shown(key)} has values of {entry.dtype}, not of one of "
                f"{', '.join(_DTYPES)}"
            )
    widths = {entry.shape[1] for key, entry in entries.items() if _QUERY.search(key) and entry.shape[1:]}
    highest = max((layer[1] for key in entries if (layer := layer_of(key))), default=0)
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
