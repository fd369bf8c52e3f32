"""A diffusers module cut into pieces, of whose layers a rank holds some: what families have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from diffusers.models.modeling_utils import ModelMixin

from paradit.models.common.layers import Layers
from paradit.models.common.stored_weights import StoredWeights
from paradit.models.protocol import Block, C, CutTransformer, L, T


class CutModule(CutTransformer[T, C, L]):
    """A diffusers module in pieces: embed, its blocks, head, unpatchify."""

    LISTS: ClassVar[tuple[str, ...]]
    """The module's lists of layers, in order."""

    def __init__(
        self, module: ModelMixin, *, compile: bool = False, stored: StoredWeights | None = None
    ) -> None:
        """compile: what is before and after attention, with `torch.compile`. stored: for `Layers`."""
        self.module = module
        self.layers = Layers(module, self.LISTS, stored)
        self._compile = compile
        self.blocks = self.cut()
        self.num_heads: int = module.config.num_attention_heads

    @abstractmethod
    def cut(self) -> Sequence[Block[T]]:
        """The module's layers that are held (`layers.held`), as blocks."""

    def keep_layers(self, layers: range) -> None:
        """Hold only these blocks, and what is before and after all of them."""
        self.blocks = []
        self.layers.keep(layers)
        self.blocks = self.cut()
