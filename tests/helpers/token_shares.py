"""Forward of a split transformer whose tokens are divided into shares, as on ranks, in one process."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paradit.attention.local_attention import sdpa


def forward_in_shares(cut: Any, tokens: Any, cuts: Sequence[int]) -> Tensor:
    """Return each token's part of the prediction, [B, S, patch values], computed share by share.

    cuts: where the video's tokens are cut. Each share has all of the text's tokens, if they are replicated.
    """
    num_tokens, num_text = tokens.hidden_states.shape[1], tokens.layout.num_replicated
    shares = [tokens.shard(*share) for share in zip([0, *cuts], [*cuts, num_tokens], strict=True)]

    def whole(parts: Sequence[Tensor]) -> Tensor:
        ends = [part.shape[1] - num_text for part in parts]
        video = [part[:, :end] for part, end in zip(parts, ends, strict=True)]
        return torch.cat([*video, parts[0][:, ends[0] :]], dim=1)

    for block in cut.blocks:
        values, keys, queries = zip(*(block.project(share) for share in shares), strict=True)
        all_keys = whole([share.layout.rope.apply(key) for share, key in zip(shares, keys, strict=True)])
        rotated = [share.layout.rope.apply(query) for share, query in zip(shares, queries, strict=True)]
        attended = [sdpa(query, all_keys, whole(values)) for query in rotated]
        shares = [block.finish(*pair) for pair in zip(shares, attended, strict=True)]
    return torch.cat([cut.head(share) for share in shares], dim=1)
