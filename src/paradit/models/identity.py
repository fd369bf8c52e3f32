"""Hash of a model's folder: equal for equal copies, different for other weights. Does not import torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from paradit.models.folder_json import components, read_json, stored_variant, weight_files

SAMPLES, SAMPLE_BYTES = 64, 4096
"""Number of samples that the hash reads from a weights file, and bytes of each.

Reading whole files would take minutes.
"""
_ABOUT_THE_FILE = ("_diffusers_version", "_name_or_path", "transformers_version")
"""Configuration keys that say who wrote the file, and where; the hash ignores them."""


def model_hash(folder: Path, variant: str | None = None) -> str:
    """Return a hash of a model's configurations, tokenizers and weights; 16 hexadecimal digits.

    Of the weights, it includes headers, sizes and evenly spaced samples of those files that are loaded, so
    that it takes milliseconds. Raises OSError if a file cannot be read.
    """
    index = read_json(folder / "model_index.json")
    digest = hashlib.sha256(_canonical(index))
    variant = variant or stored_variant(folder)
    for component in sorted(components(index)):
        loaded = weight_files(folder / component, variant)
        for path in sorted((folder / component).glob("*")):
            if path.suffix == ".safetensors" and path not in loaded:
                continue
            content = _content(path)
            # With names and lengths, so that the same bytes in other files have another hash.
            digest.update(f"{component}/{path.name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:16]


def _content(path: Path) -> bytes:
    if path.suffix == ".safetensors":
        return _samples(path)
    if path.suffix == ".json":
        return _canonical(read_json(path))
    return path.read_bytes()


def _canonical(config: dict[str, object]) -> bytes:
    kept = {key: value for key, value in config.items() if key not in _ABOUT_THE_FILE}
    return json.dumps(kept, sort_keys=True).encode()


def _samples(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = file.read(8)
        # The first 8 bytes hold the length of the header, which is read whole.
        parts = [str(size).encode(), file.read(min(size, int.from_bytes(length, "little")))]
        for number in range(SAMPLES):
            # Evenly spaced: the first sample is at the file's start, the last one at its end.
            file.seek(number * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
            parts.append(file.read(SAMPLE_BYTES))
    return b"".join(parts)
