"""Settings in which execution plans can differ, and a test of whether two plans differ in only one."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from paradit.attention.registry import Choice
from paradit.planner.simulate import Candidate


def _stages_of(candidate: Candidate) -> Hashable:
    placement = candidate.placement
    return placement.encode_ranks, placement.denoise_ranks, placement.decode_ranks, placement.replicas


SETTINGS: dict[str, Callable[[Candidate, Choice], Hashable]] = {
    "method": lambda candidate, _: candidate.method,
    "stages": lambda candidate, _: _stages_of(candidate),
    "co-processing": lambda candidate, _: candidate.coprocess,
    "guidance branches": lambda candidate, _: candidate.placement.cfg_degree,
    "a stage's tokens": lambda candidate, _: candidate.cost_model.sharers(candidate),
    "attention": lambda _, choice: (choice.name, choice.options),
    "interleaved": lambda _, choice: choice.interleave,
    "ranks that share a decode": lambda candidate, _: candidate.placement.decode_degree > 1,
    "decode tiles": lambda candidate, _: candidate.tile,
}
"""Mapping from the name of each setting in which plans can differ to a function that returns the setting's
value, given a plan and its attention form (such as Ulysses or ring). Values that follow from these settings,
such as the number of layer slices, are not listed."""
_OF_ONE_METHOD = ("a stage's tokens", "attention", "interleaved")
"""Names of settings that exist for one denoising method only. They are ignored if plans of two methods are
compared."""


def differs_only_in(setting: str, one: tuple[Candidate, Choice], other: tuple[Candidate, Choice]) -> bool:
    """Return whether two execution plans differ in the given setting and in no other."""
    of, free = SETTINGS[setting], (setting, *(_OF_ONE_METHOD if setting == "method" else ()))
    if of(*one) == of(*other) or _ranks_of(one[0]) != _ranks_of(other[0]):
        return False
    return all(of(*one) == of(*other) for name, of in SETTINGS.items() if name not in free)


def _ranks_of(candidate: Candidate) -> Hashable:
    """Return what must be equal in two plans that are compared, such as the number of ranks."""
    return (
        candidate.placement.ranks,
        candidate.placement.attention_backend,
        candidate.placement.compile,
        candidate.offload,
    )
