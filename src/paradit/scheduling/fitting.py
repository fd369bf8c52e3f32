"""Find options, close to those given, with which a request that exceeds the device's memory would fit."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from paradit.config.errors import InputError
from paradit.config.methods.method import check_placement, method_of
from paradit.config.methods.registry import declared_placement_options
from paradit.config.options import to_argv
from paradit.config.placement import CFG_DEGREES, Placement
from paradit.config.placement_text import write_groups
from paradit.config.requests import ResolvedRequest
from paradit.config.values import NONE
from paradit.models.spec import ModelSpec
from paradit.scheduling.balance import candidate_placements
from paradit.scheduling.rank_memory import fitting_tile
from paradit.scheduling.stages import PLACED

SURELY = 1.1
"""Factor by which the estimated peak must exceed the device's memory for a run to be refused; with a smaller
excess there is only a warning.

Estimates are at most 4 % above what torch's allocator is asked for while denoising, and 8 % in a decode
(`tests/unit/test_memory_estimate.py`). Memory for exchanges, convolutions and files is not included."""


@dataclass(frozen=True)
class _Change:
    words: list[str]
    request: ResolvedRequest
    placement: Placement


class _Search:
    def __init__(
        self,
        request: ResolvedRequest,
        spec: ModelSpec,
        asked: Placement,
        fits: Callable[[ResolvedRequest, Placement], bool],
    ) -> None:
        self._request, self._spec, self._asked, self._fits = request, spec, asked, fits

    def find(self, most_ranks: int, *, halve: bool) -> str:
        as_asked = _Change([], self._request, self._asked)
        # Nearest first: the same ranks before more ranks, and fewer changed options before more.
        changes = sorted(self._placements(self._asked.ranks), key=lambda change: len(change.words))
        for ranks in range(self._asked.ranks + 1, most_ranks + 1):
            changes += sorted(self._placements(ranks), key=lambda change: len(change.words))
        if halve:
            changes.append(
                replace(as_asked, words=to_argv({"dtype": "bf16"}), request=self._of(dtype="bf16"))
            )
        found = self._tiled(as_asked) or next(filter(self._is_accepted, changes), None)
        found = found or next((tiled for change in changes if (tiled := self._tiled(change))), None)
        if found is not None:
            return shlex.join([*found.words, *_kept(found)])
        shorter = [shlex.join(change.words) for change in self._shorter()]
        return ", or with ".join(shorter)

    def _of(self, **fields: object) -> ResolvedRequest:
        return replace(self._request, **fields)  # type: ignore[arg-type]

    def _is_accepted(self, change: _Change) -> bool:
        with suppress(InputError):
            check_placement(change.placement, change.request, self._spec)
            return self._fits(change.request, change.placement)
        return False

    def _tiled(self, change: _Change) -> _Change | None:
        """Return a change of options that also sets the largest decode tiles that fit, or None if none fit.

        change: the change of options to which the tiles are added.
        """
        tile = fitting_tile(
            change.request, self._spec, lambda tiled: self._is_accepted(replace(change, request=tiled))
        )
        if tile is None:
            return None
        words = [*change.words, *to_argv({"vae_tile": tile})]
        return _Change(words, replace(change.request, vae_tile=tile), change.placement)

    def _placements(self, ranks: int) -> Iterator[_Change]:
        """Yield other placements (which ranks do what) for one video, each as a change of options.

        The options are those of the command line. ranks: number of ranks that the placements use.
        """
        asked, method = self._asked, method_of(self._request)
        for cfg_degree in CFG_DEGREES:
            with suppress(InputError):
                for whole in candidate_placements(self._as(ranks, cfg_degree), 1):
                    for placement in method.divisions(whole, asked):
                        if placement != asked:
                            yield _Change(_words(asked, placement), self._request, placement)

    def _as(self, ranks: int, cfg_degree: int) -> Placement:
        """Return the requested placement, changed so that `ranks` ranks all run all stages."""
        return replace(
            self._asked,
            ranks=ranks,
            encode=None,
            denoise=None,
            decode=None,
            replicas=1,
            decode_degree=1,
            cfg_degree=cfg_degree,
            method_options=NONE,
            coprocess=False,
        )

    def _shorter(self) -> Iterator[_Change]:
        """Yield changes of options that make a video fit: fewer frames, or the method for long videos."""
        request, spec, method = self._request, self._spec, method_of(self._request)
        frames = method.fitting_frames(
            request, spec, lambda shorter: self._is_accepted(_Change([], shorter, self._asked))
        )
        if frames is not None:
            words = to_argv({"num_frames": frames})
            # If the user gave a duration, the answer is one; rounded down, so that it needs no more frames.
            if request.trim:
                words = to_argv({"duration": f"{math.floor(100 * frames / request.fps) / 100:g}s"})
            yield _Change(words, self._of(num_frames=frames), self._asked)
        if blocks := method.instead(request, spec):
            change = _Change(to_argv({"method": blocks.method}), blocks, self._asked)
            if self._is_accepted(change):
                yield change


def options_that_fit(
    request: ResolvedRequest,
    spec: ModelSpec,
    placement: Placement,
    fits: Callable[[ResolvedRequest, Placement], bool],
    *,
    most_ranks: int,
    halve: bool,
) -> str:
    """Return command-line options with which a request would fit in memory; empty if there are none.

    Tried in this order: the largest decode tiles that fit; another placement of the ranks, with the fewest
    options changed; more ranks; bf16; one of these changes with smaller decode tiles; fewer frames, or frame
    blocks.

    placement: the placement that was requested. fits: function that returns whether a request fits with a
    placement. most_ranks: largest number of ranks that may be advised. halve: whether bf16 may be advised,
    because the request would run in fp32.
    """
    return _Search(request, spec, placement, fits).find(most_ranks, halve=halve)


def _words(asked: Placement, other: Placement) -> list[str]:
    """Return the command-line options that turn one placement into another.

    asked: the placement that was requested. other: the placement to get.
    """
    groups = [(one.encode, one.denoise, one.decode) for one in (asked, other)]
    before, after = asked.flat(), other.flat()
    said = {
        "ranks": other.ranks if other.ranks != asked.ranks else None,
        "placement": write_groups(other) if groups[0] != groups[1] else None,
    }
    names = ("replicas", "decode_degree", "cfg_degree", *declared_placement_options())
    changed = {name: after[name] for name in names if after[name] != before[name]}
    return to_argv({**said, **changed, "coprocess": False if asked.coprocess else None})


def _kept(change: _Change) -> list[str]:
    """Return the options that a user must repeat when giving another `--placement`.

    A `--placement` may be a file that sets these options too; they are lost if another value replaces the
    file.
    """
    if "--placement" not in change.words:
        return []
    usual = Placement().flat()
    return to_argv({
        name: value
        for name, value in change.placement.flat().items()
        if name not in ("ranks", *PLACED)
        and value != usual[name]
        and not {*to_argv({name: True})} & {*change.words}
    })  # fmt: skip
