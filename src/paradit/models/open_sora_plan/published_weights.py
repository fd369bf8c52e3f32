"""Weights of published Open-Sora-Plan checkpoints: which tensors of a file belong to a model, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MT5Config, MT5EncoderModel, T5Tokenizer

from paradit.config.errors import InputError
from paradit.models.common.tensor_files import chosen, read_tensors
from paradit.models.open_sora_plan.wf_vae import WFVAEModel

TRAINING = "module."
"""Prefix of names in a moving average of weights, from the wrapper that trained them."""


def vae_weights(path: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a WFVAEModel from a file of its training, by name. Raises InputError.

    They are the moving average (`ema_state_dict`) if the file has one, else `gen_model` in `state_dict`, or
    `state_dict` itself.
    """
    with torch.device("meta"):
        model = WFVAEModel.from_config(dict(config))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return chosen(_generator(read_tensors(path)), shapes, path)


def _generator(stored: object) -> object:
    """Return the VAE's own weights, by name, from the content of a training file."""
    if not isinstance(stored, dict):
        return stored
    average = stored.get("ema_state_dict", {})
    if not isinstance(average, dict):  # which `chosen` refuses
        return average
    if average:
        return {str(name).removeprefix(TRAINING): tensor for name, tensor in average.items()}
    inner = stored.get("state_dict", stored)
    return inner.get("gen_model", inner) if isinstance(inner, dict) else inner


def text_encoder_weights(path: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of an MT5EncoderModel from a file that also has the decoder. Raises InputError."""
    try:
        with torch.device("meta"):
            model = MT5EncoderModel(MT5Config.from_dict(dict(config)))
    except Exception as error:  # transformers' classes raise nearly anything
        why = " ".join(str(error).split())
        raise InputError(f"the configuration beside {str(path)!r} is not that of an mT5: {why}") from None
    # The embedding has two names in the model; `named_parameters` has only the first.
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    return chosen(read_tensors(path), shapes, path)


def make_tokenizer(folder: Path) -> None:
    """Write the tokenizer.json of a folder that has a spiece.model."""
    T5Tokenizer.from_pretrained(folder).save_pretrained(folder)
