"""Registry of attention forms: how the ranks of a guidance branch share attention. Imports no torch.

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
"""Value of the attention option that asks for the quickest choice among all forms that are `automatic`."""


@dataclass(frozen=True)
class Choice:
    """An attention form with all its options set."""

    name: str
    options: Values = NONE
    interleave: bool = False
    """Whether both guidance branches run side by side, each computing while the other's data travel.

    False: they run in one batch.
    """

    @classmethod
    def of(cls, name: str, *, interleave: bool = False, **options: Value | None) -> Choice:
        """Return the choice of the form called `name`, with the given options of that form."""
        return cls(name, Values(options), interleave)

    @classmethod
    def plain(cls, *, interleave: bool = False) -> Choice:
        """Return the baseline that all choices are compared with: the first form in the registry."""
        return cls(FORMS.names()[0], interleave=interleave)

    @property
    def form(self) -> Form:
        return FORMS.find(self.name)

    @property
    def lag(self) -> int:
        """Number of turns by which the second interleaved guidance branch starts after the first."""
        return self.form.lag(self)

    @property
    def parts(self) -> int:
        """Number of parts into which an attention's work is cut: one travels while another is computed."""
        return self.form.parts(self)

    @property
    def simplest(self) -> Choice:
        """Plainest choice that runs the same program as this one."""
        return self.form.simplest(self)

    def __str__(self) -> str:
        return self.form.written(self.options) + (", interleaved" if self.interleave else "")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Requirements on an attention form, as far as a placement of the ranks states them."""

    ranks: int
    """Number of ranks that share the tokens of a guidance branch."""
    options: Values
    kernel: str
    """Name of the attention backend: one of `paradit.kernels.KERNELS`."""
    interleave: bool | None
    coprocess: bool
    """Whether ranks that hold no tokens may take a share of the attention."""


@dataclass(frozen=True)
class NoOptions:
    """Options of an attention form that has none."""


class Form:
    """A way in which the ranks of a guidance branch share its attention."""

    name: str
    help: str
    """One line for help texts: how the ranks share attention."""
    exactness: str
    """Text that begins with `exact` or `approximate`, and says to what extent or in what respect."""
    joined_by: str
    """Location, as "module:name", of the `Join` (`attention.join`) that builds the form on ranks; may
    import torch."""
    timed_by: str
    """Location, as "module:name", of the form's `Timing` (`attention.timing`), with which the planner
    simulates it; must not import torch."""
    options: type = NoOptions
    """Frozen dataclass, read by `paradit.config.options`, of the options that only this form has."""
    automatic = False
    """Whether attention `auto` may choose this form."""
    compared = False
    """Whether the planner also compares this form although attention `auto` does not try it."""
    helped = False
    """Whether ranks that hold no tokens may take a share of this form's work (co-processing)."""
    needs_lse = False
    """Whether the form needs an attention backend that returns the log-sum-exp."""

    @property
    def is_exact(self) -> bool:
        return self.exactness.startswith("exact")

    def check(self, asked: Asked) -> None:
        """Refuse requirements that this form cannot meet. Raises InputError.

        An override calls this first, then refuses what else it cannot meet.
        """
        if self.needs_lse:
            require_lse(asked.kernel, self.name)
        if asked.coprocess and not self.helped:
            able = ", ".join([AUTO, *(form.name for form in FORMS.all() if form.helped)])
            raise InputError(
                f"coprocess goes with attention {able}, got {self.name!r}: use one of these, or no coprocess"
            )

    def misplaced(self, attention: str) -> str:
        """Return the error text for this form's options if `attention` names another form."""
        names = list(declared(self.options))
        verb, them = ("is", "it") if len(names) == 1 else ("are", "them")
        return f"{' and '.join(names)} {verb} {self.name}'s, and attention is {attention!r}: leave {them} out"

    def choices(self, asked: Asked, heads: int) -> list[Choice]:  # noqa: ARG002
        """Return the choices that remain open if this form is asked for, the plainest first.

        heads: largest number of heads that a rank works on.
        """
        return [Choice(self.name, asked.options)]

    def candidates(self, asked: Asked, heads: int) -> list[Choice]:
        """Return the choices that `auto` may try, the plainest first.

        Only called for an `automatic` form.
        """
        return self.choices(asked, heads)

    def lag(self, choice: Choice) -> int:  # noqa: ARG002
        """Return by how many turns the second interleaved guidance branch starts after the first."""
        return 0

    def parts(self, choice: Choice) -> int:  # noqa: ARG002
        """Return the number of parts into which the work of an attention is cut."""
        return 1

    def simplest(self, choice: Choice) -> Choice:
        """Return the plainest choice that runs the same program as `choice`."""
        return choice

    def written(self, options: Mapping[str, Value], *, short: bool = False) -> str:  # noqa: ARG002
        """Return the form and its options as readable text; `short` is for text within a list."""
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
    """Return the declared options of all attention forms, by option name."""
    return {name: option for form in FORMS.all() for name, option in declared(form.options).items()}


def help_text() -> str:
    """Return the `--help` text for the choice of an attention form; forms that are not exact are marked."""
    names = [form.name + ("" if form.is_exact else " (approximate)") for form in FORMS.all()]
    tried = ", ".join(form.name for form in FORMS.all() if form.automatic)
    return (
        f"How the ranks share attention: {', '.join(names)}; {AUTO}: the quickest of {tried} and interleave. "
        f"[default: {AUTO}]"
    )


def checked_options(attention: str, options: Mapping[str, Value | None]) -> Values:
    """Return the attention options that are set to other values than their defaults, after checking them.

    attention: name of a form, or `AUTO`. Raises InputError for an option that no form has, a value that is
    not valid for its option, or an option of another form.
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
    """Return all forms, the requested one first, because another may have an option of the same name."""
    return sorted(FORMS.all(), key=lambda form: form.name != attention)


def automatic(asked: Asked, heads: int) -> Iterator[Choice]:
    """Yield the choices that attention `auto` may try, the plainest first.

    Skips forms that are not automatic, refuse what is asked, or lack an option that is set.
    """
    for form in FORMS.all():
        if not form.automatic or not set(asked.options) <= declared(form.options).keys():
            continue
        try:
            form.check(asked)
        except InputError:
            continue
        yield from form.candidates(asked, heads)
