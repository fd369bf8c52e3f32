"""PipeSP as in its paper (arXiv 2511.12056, Algorithm 1): all data arrive; results leave head by head."""

from __future__ import annotations

from paradit.attention.registry import Form


class PipeSPPaper(Form):
    name = "pipesp-paper"
    help = "All data arrive first, then each head is computed and sent on; for comparison with its paper."
    exactness = "exact: bit for bit the result of one process"
    helped = patterns = True
    joined_by = "paradit.attention.pipesp_paper:join"
    timed_by = "paradit.attention.timing.head_exchange:paper_layer"


PIPESP_PAPER = PipeSPPaper()
