"""Base class of diffusers transformers split at their attention, of whose layers a rank may hold some."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from diffusers.models.modeling_utils import ModelMixin

from paradit.models.common.layers import Layers
from paradit.models.common.stored_weights import StoredWeights
from paradit.models.protocol import Block, C, CutTransformer, L, T


class CutModule(CutTransformer[T, C, L]):
    """A diffusers transformer split into embedding, blocks and head; base class for all families."""

    LISTS: ClassVar[tuple[str, ...]]
    """Names of the module's lists of layers, in the order in which they run."""

    def __init__(
        self, module: ModelMixin, *, compile: bool = False, stored: StoredWeights | None = None
    ) -> None:
        """Split a diffusers module into embedding, blocks and head.

        compile: whether `torch.compile` compiles what runs before and after attention. stored: the weights
        from which `Layers` reads layers that the module lacks.
        """
        self.module = module
        self.layers = Layers(module, self.LISTS, stored)
        self._compile = compile
        self.blocks = self.cut()
        self.num_heads: int = module.config.num_attention_heads

    @abstractmethod
    def cut(self) -> Sequence[Block[T]]:
        """Wrap each module layer that this rank holds (`layers.held`) as a `Block`, and return these."""

    def keep_layers(self, layers: range) -> None:
        """Hold only these transformer blocks from now on, and what runs before and after all blocks."""
        self.blocks = []
        self.layers.keep(layers)
        self.blocks = self.cut()
