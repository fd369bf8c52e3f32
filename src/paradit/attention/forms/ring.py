"""Ring attention (arXiv 2310.01889): keys and values pass from rank to rank in a ring.

While a rank receives the next keys and values, it computes attention over the previous ones. Every rank keeps
its queries, and stores at most two ranks' keys and values at a time.
"""

from __future__ import annotations

from paradit.attention.registry import Form


class Ring(Form):
    name = "ring"
    help = "Queries stay on their ranks; keys and values pass around a ring while others are computed."
    exactness = "exact up to rounding: a row's partial sums are added in another order"
    compared = needs_lse = True
    joined_by = "paradit.attention.ring:join"
    timed_by = "paradit.attention.timing.rings:ring_layer"


RING = Ring()
