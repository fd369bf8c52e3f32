"""Record of which layers of a transformer a rank has in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch.nn import Module, ModuleList

from paradit.models.common.stored_weights import StoredWeights


class Layers:
    """Layers of a transformer, in the order in which they run, and which of them this rank has in memory."""

    def __init__(self, module: Module, lists: Sequence[str], stored: StoredWeights | None = None) -> None:
        """Record a module's layers.

        lists: the names of the module's ModuleLists of layers, in the order in which they run. stored: reader
        of the weights on disk, for layers that are not in memory (`StoredWeights.without_layers`); None: all
        layers are in memory.
        """
        self._module, self._lists, self._stored = module, lists, stored
        parts = [(name, part) for name in lists for part in getattr(module, name)]
        self.kinds = tuple(name for name, _ in parts)
        """For each layer, in memory or not, the name of the ModuleList that the layer belongs to.

        The layers of one list have the same structure.
        """
        empty = [any(parameter.is_meta for parameter in part.parameters()) for _, part in parts]
        self._held = {layer: part for layer, (_, part) in enumerate(parts) if not empty[layer]}
        self._empty = {layer: part for layer, (_, part) in enumerate(parts) if empty[layer]}
        # Layers that are not loaded are taken out of the module, so that all weights in it can be used.
        if self._empty:
            self._show()

    @property
    def held(self) -> list[int]:
        """Indices of the layers that are in memory, in ascending order."""
        return list(self._held)

    def keep(self, layers: Collection[int]) -> None:
        """Hold only the layers with these indices in memory: free others, and read missing ones from disk."""
        self._held = {layer: part for layer, part in self._held.items() if layer in layers}
        self._show()
        # The others are out of the module by now, so their memory is free before more is read.
        for layer in sorted(set(layers) - self._held.keys()):
            assert self._stored is not None, f"layer {layer} was given up"
            name = self.kinds[layer]
            # Names of stored tensors have the layer's number within its ModuleList.
            number = layer - self.kinds.index(name)
            self._held[layer] = self._stored.filled(self._empty[layer], f"{name}.{number}")
        self._held = dict(sorted(self._held.items()))
        self._show()

    def _show(self) -> None:
        for name in self._lists:
            held = [part for layer, part in self._held.items() if self.kinds[layer] == name]
            setattr(self._module, name, ModuleList(held))
