"""Storage of this machine's calibration (by `paradit calibrate`) in the user's cache, where runs look for it.

Torch-free.
"""

from __future__ import annotations

import logging
import os
import platform
from contextlib import suppress
from pathlib import Path

from paradit.config.errors import InputError
from paradit.engine.launchers import threads_per_rank
from paradit.files import write_whole
from paradit.planner.hardware import Cluster, find_cluster

_LOG = logging.getLogger(__name__)


def calibrated_file(ranks: int) -> Path:
    """Return the path, in the user's cache folder, to this machine's calibration with this many ranks.

    The file's name also contains the number of threads per rank, which OMP_NUM_THREADS may change.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{platform.node()}, {ranks} ranks of {threads_per_rank(ranks)} threads.toml"
    return cache / "paradit" / "machines" / name


def keep_calibrated(text: str, ranks: int) -> None:
    """Save the text of a calibration file for this machine; do nothing if it cannot be written."""
    path = calibrated_file(ranks)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())


def calibrated_cluster(ranks: int) -> Cluster | None:
    """Return a description of this machine for the planner, from its calibration with this many ranks.

    None if there is no calibration file that can be read.
    """
    path = calibrated_file(ranks)
    try:
        cluster = find_cluster(str(path))
    except InputError as error:
        _LOG.debug("no calibration of this machine with %d ranks: %s", ranks, error)
        return None
    _LOG.info("using the calibration of this machine in %s", path)
    return cluster if cluster.ranks == ranks else None
