"""Bookkeeping of which transformer layers a rank holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch.nn import Module, ModuleList

from paradit.models.common.stored_weights import StoredWeights


class Layers:
    """Layers of a module, list after list, and a record of those whose weights this rank holds."""

    def __init__(self, module: Module, lists: Sequence[str], stored: StoredWeights | None = None) -> None:
        """Read a module's layers. lists: the names of its lists of layers, in order.

        stored: the weights for layers that have none yet (`StoredWeights.without_layers`).
        """
        self._module, self._lists, self._stored = module, lists, stored
        parts = [(name, part) for name in lists for part in getattr(module, name)]
        self.kinds = tuple(name for name, _ in parts)
        """Name of the list that each layer is in, whether held or not; the layers of one list are alike."""
        empty = [any(parameter.is_meta for parameter in part.parameters()) for _, part in parts]
        self._held = {layer: part for layer, (_, part) in enumerate(parts) if not empty[layer]}
        self._empty = {layer: part for layer, (_, part) in enumerate(parts) if empty[layer]}
        if self._empty:
            self._show()

    @property
    def held(self) -> list[int]:
        """Numbers of the layers that the module holds, in order."""
        return list(self._held)

    def keep(self, layers: Collection[int]) -> None:
        """Hold these layers and no others; missing ones are read after the memory of the others is free."""
        self._held = {layer: part for layer, part in self._held.items() if layer in layers}
        self._show()
        for layer in sorted(set(layers) - self._held.keys()):
            assert self._stored is not None, f"layer {layer} was given up"
            name = self.kinds[layer]
            number = layer - self.kinds.index(name)
            self._held[layer] = self._stored.filled(self._empty[layer], f"{name}.{number}")
        self._held = dict(sorted(self._held.items()))
        self._show()

    def _show(self) -> None:
        for name in self._lists:
            held = [part for layer, part in self._held.items() if self.kinds[layer] == name]
            setattr(self._module, name, ModuleList(held))
