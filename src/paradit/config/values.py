"""Immutable mapping from names to values, for options that only some methods or attention forms have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Value = bool | int | float | str


class Values(Mapping[str, Value]):
    """Immutable mapping from names to values, sorted by name; values that are None are left out."""

    def __init__(self, values: Mapping[str, Value | None] | None = None, /, **more: Value | None) -> None:
        given = {**(values or {}), **more}
        self._values = {name: value for name, value in sorted(given.items()) if value is not None}

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return f"Values({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"


NONE = Values()
"""Empty `Values`, used as a default."""
