"""Base class of diffusers transformers split at their attention; a rank may hold only some of the layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from diffusers.models.modeling_utils import ModelMixin

from paradit.models.common.layers import Layers
from paradit.models.common.stored_weights import StoredWeights
from paradit.models.protocol import Block, C, L, SplitTransformer, T


class SplitModule(SplitTransformer[T, C, L]):
    """A diffusers transformer split into embedding, transformer blocks and head.

    It is a base class: each model family has its own subclass.
    """

    LISTS: ClassVar[tuple[str, ...]]
    """Names of the module's ModuleLists of layers, in the order in which they run."""

    def __init__(
        self, module: ModelMixin, *, compile: bool = False, stored: StoredWeights | None = None
    ) -> None:
        """Split a diffusers module into embedding, transformer blocks and head.

        compile: whether `torch.compile` compiles what runs before and after attention. stored: reader of the
        weights on disk, for layers that are not in memory; None: all layers are in memory.
        """
        self.module = module
        self.layers = Layers(module, self.LISTS, stored)
        self._compile = compile
        self.blocks = self.cut()
        self.num_heads: int = module.config.num_attention_heads

    @abstractmethod
    def cut(self) -> Sequence[Block[T]]:
        """Return the layers that this rank holds (`layers.held`), each wrapped as a `Block`."""

    def keep_layers(self, layers: range) -> None:
        """Keep only the given transformer blocks, the embedding and the head in memory.

        Given blocks that are not in memory are read from disk.
        """
        # Blocks refer to their layers: drop them first, so that the layers' memory can be freed.
        self.blocks = []
        self.layers.keep(layers)
        self.blocks = self.cut()
