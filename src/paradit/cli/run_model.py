"""Search for the model of a run that is resumed or extended; its files must be unchanged since the run began.

Torch-free.
"""

from __future__ import annotations

from pathlib import Path

from paradit.config.errors import InputError
from paradit.engine.job import Run
from paradit.models.find_lora import with_same_loras
from paradit.models.folder import download_weights, find_model
from paradit.models.identity import model_hash
from paradit.models.spec import ModelSpec, read_spec


def find_run_model(run: Run) -> Path:
    """Return the folder of a run's model: the folder it began with if that exists, else one found by name.

    A hub model may have a newer revision by now, in another folder. Raises InputError as `find_model` does.
    """
    if run.model_folder and Path(run.model_folder).is_dir():
        return find_model(run.model_folder, variant=run.variant)
    return find_model(run.model, revision=run.revision, variant=run.variant)


def run_spec(run: Run, folder: Path) -> ModelSpec:
    """Return the spec of a run's model, with the run's LoRAs.

    folder: the model's folder. Raises InputError if a LoRA is missing, or has changed since the run began.
    """
    return with_same_loras(read_spec(folder, run.variant), run.loras)


def complete_run_model(run: Run, folder: Path) -> None:
    """Download missing files of a run's model. Raises InputError if it has changed since the run began."""
    download_weights(run.model, folder, run.variant)
    if run.model_hash and model_hash(folder, run.variant) != run.model_hash:
        raise InputError(
            f"the model {run.model!r} has changed since the run began, so the video would not be the same: "
            "restore the model, or start again with paradit generate"
        )
