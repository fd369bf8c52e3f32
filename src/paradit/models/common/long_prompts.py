"""Function that finds the end of a too long prompt, which a text encoder cuts off and does not read."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def left_out(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> str:
    """Return the end of a text that a tokenizer cuts off at `length` tokens; empty if nothing is cut off."""
    whole = tokenizer(text, verbose=False).input_ids
    cut = tokenizer(text, max_length=length, truncation=True, verbose=False).input_ids
    if len(whole) <= len(cut):
        return ""
    # Compare token by token: the shortened text, too, ends with special tokens, so it is no prefix of the
    # whole.
    kept = next((place for place, (a, b) in enumerate(zip(whole, cut, strict=False)) if a != b), len(cut))
    return str(tokenizer.decode(whole[kept:], skip_special_tokens=True)).strip()
