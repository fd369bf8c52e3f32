"""Registry of attention forms, such as Ulysses and ring, by which ranks share attention. Imports no torch.

To add one, see docs/development/adding_an_attention_form.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from paradit.attention.patterns import Pattern
from paradit.attention_backends import require_lse
from paradit.config.errors import InputError
from paradit.config.options import Declared, declared, decode
from paradit.config.plugins import Registry
from paradit.config.values import NONE, Value, Values

AUTO = "auto"
"""Value of `--attention` that asks for the fastest of all attention forms that are marked as `automatic`."""


@dataclass(frozen=True)
class Choice:
    """A form of attention, such as Ulysses or ring, with values for all its options."""

    name: str
    options: Values = NONE
    interleave: bool = False
    """Whether both guidance branches run in turn, each computing while data of the other branch travel.

    If not, they run in one batch.
    """

    @classmethod
    def of(cls, name: str, *, interleave: bool = False, **options: Value | None) -> Choice:
        """Return the attention form called `name`, with the given values of its options."""
        return cls(name, Values(options), interleave)

    @classmethod
    def plain(cls, *, interleave: bool = False) -> Choice:
        """Return the baseline of all comparisons: the first attention form in the registry, plain Ulysses."""
        return cls(FORMS.names()[0], interleave=interleave)

    @property
    def form(self) -> Form:
        return FORMS.find(self.name)

    @property
    def lag(self) -> int:
        """Number of turns by which the second of two interleaved guidance branches starts after the first.

        Branches take turns; a turn lasts until the branch next waits for data.
        """
        return self.form.lag(self)

    @property
    def parts(self) -> int:
        """Number of parts in which attention data travel; one part travels while another is computed."""
        return self.form.parts(self)

    @property
    def simplest(self) -> Choice:
        """Simplest attention form that runs exactly as this one, such as Ulysses for PipeSP in one chunk."""
        return self.form.simplest(self)

    def __str__(self) -> str:
        return self.form.written(self.options) + (", interleaved" if self.interleave else "")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Requirements that a run sets for its attention form, such as number of ranks and attention backend."""

    ranks: int
    """Number of ranks that share the tokens of a guidance branch."""
    options: Values
    attention_backend: str
    """Name of the attention backend: one of `paradit.attention_backends.ATTENTION_BACKENDS`."""
    interleave: bool | None
    coprocess: bool
    """Whether ranks that hold no tokens may compute a part of the attention (co-processing)."""
    patterns: frozenset[Pattern] | None = None
    """Patterns of the model's sparse layers, in which a query does not see all keys; None: the model is not
    known yet."""


@dataclass(frozen=True)
class NoOptions:
    """Empty set of options, for an attention form that has none of its own."""


class Form:
    """A form of attention, such as Ulysses or ring: a way in which a guidance branch's ranks share it out."""

    name: str
    help: str
    """One-line description of the form for `--help`: how the ranks share attention."""
    exactness: str
    """Text that begins with `exact` or `approximate`, then says how results may differ from those of one
    process."""
    joined_by: str
    """Location, as "module:name", of the function that sets up the form on ranks (a `Join` of
    `attention.join`); may import torch."""
    timed_by: str
    """Location, as "module:name", of the function that simulates this attention form for the planner
    (a `Timing` of `attention.timing`); must not import torch."""
    options: type = NoOptions
    """Frozen dataclass of the options that only this form has; `paradit.config.options` reads it."""
    automatic = False
    """Whether `--attention auto` may choose this attention form."""
    compared = False
    """Whether the planner also compares this attention form although `--attention auto` does not try it."""
    helped = False
    """Whether ranks that hold no tokens may compute a part of the attention in this form (co-processing)."""
    patterns = False
    """Whether this attention form computes attention by the pattern of its `Site`, as sparse layers need."""
    needs_lse = False
    """Whether this attention form needs an attention backend that returns the log-sum-exp."""

    @property
    def is_exact(self) -> bool:
        return self.exactness.startswith("exact")

    def check(self, asked: Asked) -> None:
        """Raise InputError if a run has requirements that this attention form cannot meet.

        An override calls this method first, and then checks what is particular to its attention form.
        """
        if self.needs_lse:
            require_lse(asked.attention_backend, self.name)
        if asked.coprocess and not self.helped:
            able = ", ".join([AUTO, *(form.name for form in FORMS.all() if form.helped)])
            raise InputError(
                f"coprocess needs attention {able}, got {self.name!r}: use one of these, or leave it out"
            )
        if asked.patterns and not self.patterns:
            able = ", ".join([AUTO, *(form.name for form in FORMS.all() if form.patterns)])
            raise InputError(
                f"this model's sparse layers need attention {able}, got {self.name!r}: use one of these"
            )

    def misplaced(self, attention: str) -> str:
        """Return the error text for options of this attention form that are set although another is chosen.

        attention: name of the form that is chosen.
        """
        names = list(declared(self.options))
        need, them = ("needs", "it") if len(names) == 1 else ("need", "them")
        return f"{' and '.join(names)} {need} attention {self.name}, got {attention!r}: leave {them} out"

    def choices(self, asked: Asked, heads: int) -> list[Choice]:  # noqa: ARG002
        """Return the combinations of option values to try if the user asks for this attention form.

        The simplest comes first. heads: largest number of heads that a rank works on.
        """
        return [Choice(self.name, asked.options)]

    def candidates(self, asked: Asked, heads: int) -> list[Choice]:
        """Return the combinations of option values that `--attention auto` may try, the simplest first.

        Called only if the attention form is `automatic`. heads: largest number of heads that a rank works on.
        """
        return self.choices(asked, heads)

    def lag(self, choice: Choice) -> int:  # noqa: ARG002
        """Return by how many turns the second of two interleaved guidance branches starts after the first.

        Branches take turns; a turn lasts until the branch next waits for data.
        """
        return 0

    def parts(self, choice: Choice) -> int:  # noqa: ARG002
        """Return the number of parts in which attention data travel.

        One part travels while another is computed.
        """
        return 1

    def simplest(self, choice: Choice) -> Choice:
        """Return the simplest attention form, with its options, that runs exactly as `choice` does.

        It may be another form than this one, such as Ulysses for PipeSP in one chunk.
        """
        return choice

    def written(self, options: Mapping[str, Value], *, short: bool = False) -> str:  # noqa: ARG002
        """Return the attention form's name with its options as readable text.

        short: whether the text is to be shorter, for use within a list.
        """
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
        "skiparse": "paradit.attention.forms.skiparse:SKIPARSE",
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
        f"How the ranks share attention: {', '.join(names)}; or {AUTO}, the fastest of {tried}, with or "
        f"without interleave. [default: {AUTO}]"
    )


def checked_options(attention: str, options: Mapping[str, Value | None]) -> Values:
    """Check the options of an attention form; return those that are set to other values than their defaults.

    attention: name of a form, or `AUTO`. Raises InputError for an option that no form has, a value that is
    not valid for its option, or an option of another form.
    """
    given = Values(options)
    left = dict(given)
    for form in _with_options_first(attention) if given else ():
        names = declared(form.options)
        mine = {name: left.pop(name) for name in names if name in left}
        decode(form.options, mine)
        # An option at its default says nothing, so it may be set with any form.
        said = {name: value for name, value in mine.items() if value != names[name].default}
        if said and not (form.name == attention or (attention == AUTO and form.automatic)):
            raise InputError(form.misplaced(attention))
        given = Values({name: value for name, value in given.items() if name not in mine or name in said})
    if left:
        raise InputError(f"no attention form has the option {next(iter(left))}")
    return given


def _with_options_first(attention: str) -> Sequence[Form]:
    """Return all attention forms in the order in which to look up options: the requested form first.

    So if two forms have an option of the same name, the requested form gets its value. attention: name of the
    requested form, or `AUTO`.
    """
    return sorted(FORMS.all(), key=lambda form: form.name != attention)


def automatic(asked: Asked, heads: int) -> Iterator[Choice]:
    """Yield the attention forms, with option values, that `--attention auto` may try, the simplest first.

    asked: requirements of the run, and options that the user has set. Skips forms that are not marked as
    `automatic`, that cannot meet the requirements, or that do not have one of these options. heads: largest
    number of heads that a rank works on.
    """
    for form in FORMS.all():
        if not form.automatic or not set(asked.options) <= declared(form.options).keys():
            continue
        try:
            form.check(asked)
        except InputError:
            continue
        yield from form.candidates(asked, heads)
