"""Checkpoints of Open-Sora-Plan v1.3 as published, and their conversion to model folders (see `spec`).

A checkpoint's folder has the transformer in any93x640x640/ (safetensors), and the VAE in vae/ (config.json
and merged.ckpt, which torch.save wrote). The text encoder is google/mt5-xxl, which is published elsewhere:
its pytorch_model.bin also holds a decoder, which is left out. Imports torch only to convert.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from paradit.config.errors import InputError
from paradit.config.options import all_fields
from paradit.models.checkpoint import Given, Told
from paradit.models.folder_check import safetensors_problem
from paradit.models.folder_json import STEMS, read_json, stored_weights, wanted_weights
from paradit.models.open_sora_plan.spec import (
    COMPONENTS,
    PIPELINE,
    SCHEDULER,
    OpenSoraPlanTransformerSpec,
    check_together,
    read_text_encoder,
    transformer_spec,
)
from paradit.models.open_sora_plan.vae_spec import VaeConfig, vae_spec
from paradit.models.spec import CONFIG
from paradit.models.unknown_weights import check_transformer

TRANSFORMERS = ("OpenSoraT2V_v1_3", "OpenSoraInpaint_v1_3")
"""Classes of the transformers, as their configurations name them."""
VAE_FILE, TEXT_FILE = "merged.ckpt", "pytorch_model.bin"
TOKENIZER_FILES = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.json", "spiece.model"),
)
AUTHORS_DEFAULTS = {"norm_type": "groupnorm", "t_interpolation": "nearest", "connect_res_layer_num": 1}
"""Values that a published VAE configuration may leave out, if the authors' defaults differ from ours."""
PLACE = "text_encoder"
"""Name of the text encoder's folder in a checkpoint's folder, if the user names none."""


@dataclass(frozen=True, kw_only=True)
class OpenSoraPlanCheckpoint:
    """A checkpoint of Open-Sora-Plan v1.3, with all files that its conversion reads."""

    transformer: Path
    vae: Path
    text_encoder: Path
    vae_config: Mapping[str, Any]

    def write(self, folder: Path, told: Told) -> None:
        """Write the converted model into an empty folder. Raises InputError or OSError."""
        from paradit.models.common.class_weights import check_stored
        from paradit.models.common.tensor_files import check_file, copy_file, write_tensors
        from paradit.models.open_sora_plan.published_weights import text_encoder_weights, vae_weights

        config = read_json(self.text_encoder / CONFIG)
        check_stored(self.transformer)
        # Before anything large is written: these files may turn out to be unsafe or broken.
        vae, text_encoder = self.vae / VAE_FILE, self.text_encoder / TEXT_FILE
        weights = {
            "vae/diffusion_pytorch_model.safetensors": (vae, vae_weights(vae, self.vae_config)),
            "text_encoder/model.safetensors": (text_encoder, text_encoder_weights(text_encoder, config)),
        }
        for part in COMPONENTS:
            (folder / part).mkdir()
        _write(folder / "vae" / CONFIG, self.vae_config)
        _write(folder / "text_encoder" / CONFIG, {**config, "architectures": ["MT5EncoderModel"]})
        self._write_tokenizer(folder / "tokenizer")
        for name, (source, tensors) in weights.items():
            write_tensors(folder / name, tensors, source, partial(told, name))
        for name in (CONFIG, *_weights(self.transformer, index=True)):
            target = f"transformer/{name}"
            copy_file(self.transformer / name, folder / target, partial(told, target))
            if name.endswith(".safetensors"):
                check_file(self.transformer / name)
        _write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
        index = {part: list(names) for part, names in COMPONENTS.items()}
        index["transformer"][1] = read_json(self.transformer / CONFIG)["_class_name"]
        _write(folder / "model_index.json", {"_class_name": PIPELINE, **index})

    def _write_tokenizer(self, folder: Path) -> None:
        for name in TOKENIZER_FILES:
            if (self.text_encoder / name).exists():
                shutil.copyfile(self.text_encoder / name, folder / name)
        if not (folder / "tokenizer.json").exists():
            from paradit.models.open_sora_plan.published_weights import make_tokenizer

            make_tokenizer(folder)


def find(folder: Path, given: Given) -> OpenSoraPlanCheckpoint | None:
    """Return the checkpoint in a folder, or None if it is of another kind.

    Raises InputError if it is incomplete, or if a configuration is not valid.
    """
    transformers = [path.parent for path in sorted(folder.glob(f"*/{CONFIG}")) if _is_transformer(path)]
    if not (folder / "vae").is_dir() or not transformers:
        return None
    transformer = _named(transformers, given.transformer)
    spec = _checked_transformer(transformer)
    vae, config = folder / "vae", _there(folder / "vae" / CONFIG)
    vae_config = {"_class_name": "WFVAEModel", **AUTHORS_DEFAULTS, **read_json(config)}
    vae_config = {name: value for name, value in vae_config.items() if name in all_fields(VaeConfig)}
    made = vae_spec(vae_config, str(config))
    _there(vae / VAE_FILE)
    text_encoder = given.text_encoder or folder / PLACE
    if not text_encoder.is_dir():
        raise InputError(
            f"text_encoder {str(text_encoder)!r} is not a folder: name a copy of google/mt5-xxl with "
            "--text-encoder"
        )
    text = read_text_encoder(_there(text_encoder / CONFIG))
    check_together(spec, made, text, str(folder))
    _there(text_encoder / TEXT_FILE)
    _check_tokenizer(text_encoder)
    return OpenSoraPlanCheckpoint(
        transformer=transformer, vae=vae, text_encoder=text_encoder, vae_config=vae_config
    )


def _is_transformer(config: Path) -> bool:
    try:
        return read_json(config).get("_class_name") in TRANSFORMERS
    except InputError:  # of another part of the checkpoint
        return False


def _named(folders: list[Path], name: str | None) -> Path:
    """Return the transformer's folder with a given name, or the only one if no name is given.

    Raises InputError if there is no such folder.
    """
    names = [path.name for path in folders]
    if name is None and len(folders) > 1:
        raise InputError(
            f"the checkpoint has several transformers ({', '.join(names)}): name one with --transformer "
            f"{names[0]}"
        )
    if name is not None and name not in names:
        raise InputError(f"the checkpoint has no transformer {name!r}: it has {', '.join(names)}")
    return folders[names.index(name) if name is not None else 0]


def _checked_transformer(folder: Path) -> OpenSoraPlanTransformerSpec:
    """Return the sizes of the transformer in a folder. Raises InputError if its weights do not fit them."""
    spec = transformer_spec(read_json(folder / CONFIG), str(folder / CONFIG))
    for name in _weights(folder):
        if problem := safetensors_problem(_there(folder / name)):
            raise InputError(f"{str(folder / name)!r} {problem}")
    stored, _ = stored_weights(folder)
    if stored < spec.num_parameters:
        raise InputError(
            f"the checkpoint is incomplete: the weights in {str(folder)!r} have {stored:,} parameters, and "
            f"its configuration calls for {spec.num_parameters:,}"
        )
    check_transformer(folder, stored, spec.num_parameters)
    return spec


def _weights(transformer: Path, *, index: bool = False) -> list[str]:
    """Return the names of a transformer's weight files. Raises InputError if one is not in its folder.

    index: whether to include the name of the index that lists them, if there is one.
    """
    names = {path.name for path in transformer.iterdir()}
    weights = wanted_weights(transformer, names)[0] or [f"{STEMS[0]}.safetensors"]
    for name in weights:
        if name not in names:  # an index may name any path
            raise InputError(f"the checkpoint is incomplete: {transformer.name}/ has no file {name!r}")
    if index and not weights[0].startswith(f"{STEMS[0]}."):  # the name of a single file
        return [*(name for name in names if ".safetensors.index." in name), *weights]
    return weights


def _there(path: Path) -> Path:
    if not path.is_file():
        kind = "is not a file" if path.exists() else "is missing"
        raise InputError(f"the checkpoint is incomplete: {str(path)!r} {kind}")
    return path


def _check_tokenizer(folder: Path) -> None:
    _there(folder / "tokenizer_config.json")
    whole = folder / "tokenizer.json"
    for path in (folder / name for name in TOKENIZER_FILES):
        if path.exists() and _there(path).suffix == ".json" and path != whole:
            read_json(path)
    if whole.exists():
        try:
            Tokenizer.from_file(str(whole))
        except Exception as error:  # it raises no other class
            raise InputError(f"{str(whole)!r} is not a tokenizer file: {error}") from None
        return
    _there(folder / "spiece.model")
    # transformers needs them to read this file.
    missing = [name for name in ("sentencepiece", "google.protobuf") if not _is_installed(name)]
    if missing:
        raise InputError(
            f"{str(folder)!r} has no tokenizer.json, and two packages are needed to make it from "
            "spiece.model: pip install sentencepiece protobuf"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that would hold it
        return False


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
