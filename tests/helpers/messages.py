"""Checks of what a message says, by its values rather than by its whole sentences."""

import re


def says(message: str, wanted: str) -> bool:
    """Return whether a message has all parts of `wanted`, in this order.

    Parts are separated by " .. ", which stands for any words between them: "fps .. got nan".
    """
    return re.search(".*".join(map(re.escape, wanted.split(" .. "))), message) is not None
