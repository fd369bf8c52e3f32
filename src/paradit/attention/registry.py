"""Forms of attention: how the ranks of a branch share it. Each is found by its name. Torch-free.

To add one, see docs/development/adding_an_attention_form.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from paradit.config.errors import InputError
from paradit.config.options import Declared, declared, decode
from paradit.config.registry import Registry
from paradit.config.values import NONE, Value, Values
from paradit.kernels import require_lse

AUTO = "auto"
"""Asked for instead of a form: the quickest choice of the forms that say that it may try them."""


@dataclass(frozen=True)
class Choice:
    """A form of attention with all its options chosen."""

    name: str
    options: Values = NONE
    interleave: bool = False
    """Both branches side by side, each computing while the other's data travel; else in one batch."""

    @classmethod
    def of(cls, name: str, *, interleave: bool = False, **options: Value | None) -> Choice:
        """A choice by its form's name, with that form's options by theirs."""
        return cls(name, Values(options), interleave)

    @classmethod
    def plain(cls, *, interleave: bool = False) -> Choice:
        """The plainest choice of all, that everything else is compared to: the first form there is."""
        return cls(FORMS.names()[0], interleave=interleave)

    @property
    def form(self) -> Form:
        return FORMS.find(self.name)

    @property
    def lag(self) -> int:
        """How many turns the second branch is behind the first."""
        return self.form.lag(self)

    @property
    def parts(self) -> int:
        """In how many parts, each travelling while others are computed, the work of an attention comes."""
        return self.form.parts(self)

    @property
    def simplest(self) -> Choice:
        """The plainest choice that is the same program."""
        return self.form.simplest(self)

    def __str__(self) -> str:
        return self.form.written(self.options) + (", interleaved" if self.interleave else "")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a form, as far as a placement says it."""

    ranks: int
    """How many share the tokens of a branch."""
    options: Values
    kernel: str
    """What computes attention: one of `paradit.kernels.KERNELS`."""
    interleave: bool | None
    coprocess: bool
    """Whether ranks that hold no tokens may take a share of the attention."""


@dataclass(frozen=True)
class NoOptions:
    """For a form that has none."""


class Form:
    """A way in which the ranks of a branch share its attention."""

    name: str
    help: str
    """One line: what happens."""
    exactness: str
    """Whether it is exact, in words: `exact`, and how far; or `approximate`, and in what."""
    joined_by: str
    """A `Join` (`attention.join`), which builds it on ranks, as "module:name"; it may import torch."""
    timed_by: str
    """A `Timing` (`attention.timing`), by which the planner plays it, as "module:name"; without torch."""
    options: type = NoOptions
    """A frozen dataclass of `paradit.config.options`: the options that only this form has."""
    automatic = False
    """Whether `auto` may try it."""
    compared = False
    """Whether the planner also tries it where `auto` does not."""
    helped = False
    """Whether ranks that hold no tokens may take a share of it (co-processing)."""
    needs_lse = False
    """Whether its kernel must give the log-sum-exp."""

    @property
    def is_exact(self) -> bool:
        return self.exactness.startswith("exact")

    def check(self, asked: Asked) -> None:
        """Refuse what this form cannot do. Raises InputError. A form that refuses more calls this first."""
        if self.needs_lse:
            require_lse(asked.kernel, self.name)
        if asked.coprocess and not self.helped:
            able = ", ".join([AUTO, *(form.name for form in FORMS.all() if form.helped)])
            raise InputError(
                f"coprocess goes with attention {able}, got {self.name!r}: use one of these, or no coprocess"
            )

    def misplaced(self, attention: str) -> str:
        """Return what is wrong with this form's options if `attention` is another one."""
        names = list(declared(self.options))
        verb, them = ("is", "it") if len(names) == 1 else ("are", "them")
        return f"{' and '.join(names)} {verb} {self.name}'s, and attention is {attention!r}: leave {them} out"

    def choices(self, asked: Asked, heads: int) -> list[Choice]:  # noqa: ARG002
        """The choices that are left open if this form is asked for, the plainest first.

        heads: number of heads that a rank works on, at most.
        """
        return [Choice(self.name, asked.options)]

    def candidates(self, asked: Asked, heads: int) -> list[Choice]:
        """The choices that `auto` may try, the plainest first; only called for an `automatic` form."""
        return self.choices(asked, heads)

    def lag(self, choice: Choice) -> int:  # noqa: ARG002
        """How many turns the second of two interleaved branches is behind the first."""
        return 0

    def parts(self, choice: Choice) -> int:  # noqa: ARG002
        """In how many parts the work of an attention comes."""
        return 1

    def simplest(self, choice: Choice) -> Choice:
        """The plainest choice that is the same program."""
        return choice

    def written(self, options: Mapping[str, Value], *, short: bool = False) -> str:  # noqa: ARG002
        """The form with its options, as a person writes it; `short` in a list of other things."""
        said = ", ".join(f"{name} {value}" for name, value in options.items())
        return f"{self.name} ({said})" if said else self.name


FORMS: Registry[Form] = Registry(
    "attention",
    "paradit.attention",
    {
        "ulysses": "paradit.attention.forms.ulysses:ULYSSES",
        "pipesp": "paradit.attention.forms.pipesp:PIPESP",
        "pipesp-paper": "paradit.attention.forms.pipesp_paper:PIPESP_PAPER",
        "ring": "paradit.attention.forms.ring:RING",
        "usp": "paradit.attention.forms.usp:USP",
    },
)


def declared_options() -> dict[str, Declared]:
    """The options of all forms, by name."""
    return {name: option for form in FORMS.all() for name, option in declared(form.options).items()}


def help_text() -> str:
    """What `--help` says of the choice of a form; one that is not exact is named as such."""
    names = [form.name + ("" if form.is_exact else " (approximate)") for form in FORMS.all()]
    tried = ", ".join(form.name for form in FORMS.all() if form.automatic)
    return (
        f"How the ranks share attention: {', '.join(names)}; {AUTO}: the quickest of {tried} and interleave. "
        f"[default: {AUTO}]"
    )


def checked_options(attention: str, options: Mapping[str, Value | None]) -> Values:
    """The options, without those that say nothing but their default.

    attention: the name of a form, or `AUTO`. Raises InputError for an option that no form has, a value that
    it cannot have, or one that goes with another form.
    """
    given = Values(options)
    left = dict(given)
    for form in _with_options_first(attention) if given else ():
        names = declared(form.options)
        mine = {name: left.pop(name) for name in names if name in left}
        decode(form.options, mine)
        said = {name: value for name, value in mine.items() if value != names[name].default}
        if said and not (form.name == attention or (attention == AUTO and form.automatic)):
            raise InputError(form.misplaced(attention))
        given = Values({name: value for name, value in given.items() if name not in mine or name in said})
    if left:
        raise InputError(f"no form of attention has the option {next(iter(left))}")
    return given


def _with_options_first(attention: str) -> Sequence[Form]:
    """All forms, first the one that is asked for: another may have an option of the same name."""
    return sorted(FORMS.all(), key=lambda form: form.name != attention)


def automatic(asked: Asked, heads: int) -> Iterator[Choice]:
    """The choices that `auto` may try, the plainest first."""
    for form in FORMS.all():
        if not form.automatic or not set(asked.options) <= declared(form.options).keys():
            continue
        try:
            form.check(asked)
        except InputError:
            continue
        yield from form.candidates(asked, heads)
