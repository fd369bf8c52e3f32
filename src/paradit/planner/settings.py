"""Settings in which execution plans can differ, and a test of whether two plans differ in only one."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from paradit.attention.registry import Choice
from paradit.planner.simulate import Way


def _stages_of(way: Way) -> Hashable:
    placement = way.placement
    return placement.encode_ranks, placement.denoise_ranks, placement.decode_ranks, placement.replicas


SETTINGS: dict[str, Callable[[Way, Choice], Hashable]] = {
    "method": lambda way, _: way.method,
    "stages": lambda way, _: _stages_of(way),
    "co-processing": lambda way, _: way.coprocess,
    "guidance branches": lambda way, _: way.placement.cfg_degree,
    "a stage's tokens": lambda way, _: way.player.sharers(way),
    "attention": lambda _, choice: (choice.name, choice.options),
    "interleaved": lambda _, choice: choice.interleave,
    "ranks that share a decode": lambda way, _: way.placement.decode_degree > 1,
    "decode tiles": lambda way, _: way.tile,
}
"""Settings of a plan by name, each with the function that reads its value from the plan and its attention
choice. Values that follow from others are not settings: a decode is shared by all decode ranks, and the
number of layer slices follows from the guidance branches and from the ranks that share tokens."""
_OF_ONE_METHOD = ("a stage's tokens", "attention", "interleaved")
"""Names of settings that exist for one denoising method only. They are ignored if plans of two methods are
compared."""


def differs_only_in(setting: str, one: tuple[Way, Choice], other: tuple[Way, Choice]) -> bool:
    """Return whether two execution plans differ in the given setting and in no other."""
    of, free = SETTINGS[setting], (setting, *(_OF_ONE_METHOD if setting == "method" else ()))
    if of(*one) == of(*other) or _ranks_of(one[0]) != _ranks_of(other[0]):
        return False
    return all(of(*one) == of(*other) for name, of in SETTINGS.items() if name not in free)


def _ranks_of(way: Way) -> Hashable:
    """Return what two plans must share to be compared: ranks, attention backend, compilation, offloading."""
    return way.placement.ranks, way.placement.kernel, way.placement.compile, way.offload
