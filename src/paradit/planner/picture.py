"""Draw the timeline of a simulated run as an image: the stage that each rank is in, and when it waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import floor, log10

from PIL import Image, ImageDraw, ImageFont

from paradit.trace.merge import Span
from paradit.trace.spans import STAGE, STEP

WIDTH, ROW, GAP = 1600, 34, 8
"""Width of the picture, height of a rank's row, and space between two rows, in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 100, 130, 92, 76
COLORS = {
    "encode": "#7a5195",
    "conditions": "#3f9b6c",
    "denoise": "#2f6db3",
    "decode": "#e07b39",
    "load": "#888888",
}
BLOCKS = ("#2f6db3", "#4c9f70", "#a06cb4", "#c25b6a", "#4aa3b8", "#8c8c3c")
"""Colours of a long video's frame blocks in the picture; they repeat if there are more blocks."""
BACK, IDLE, INK, GREY = "#ffffff", "#eceef1", "#1d2430", "#68707c"
STEPS = (1, 2, 5, 10)
"""Candidate distances between two ticks of the time axis; each may be multiplied by any power of ten."""


def draw_timeline(by_rank: Mapping[int, Sequence[Span]], title: str, subtitle: str) -> Image.Image:
    """Draw an image of each rank's trace spans on a time axis from 0.

    The steps of a long video are coloured by frame block, everything else by stage.
    """
    end = max(span.end for spans in by_rank.values() for span in spans)
    height = TOP + len(by_rank) * (ROW + GAP) + BOTTOM
    image = Image.new("RGB", (WIDTH, height), BACK)
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 18), title, INK, _font(24))
    draw.text((LEFT, 52), subtitle, GREY, _font(18))
    bottom = TOP + len(by_rank) * (ROW + GAP)
    _axis(draw, end / 1e9, bottom)
    in_blocks = any(_block(span) is not None for spans in by_rank.values() for span in spans)
    # With more steps than pixels, colours of single blocks would be noise.
    if in_blocks and max(len(spans) for spans in by_rank.values()) > WIDTH:
        by_rank = {rank: list(map(_plain, spans)) for rank, spans in by_rank.items()}
    for number, (rank, spans) in enumerate(sorted(by_rank.items())):
        _row(draw, TOP + number * (ROW + GAP), rank, list(spans), end, in_blocks=in_blocks)
    told_apart = any(_block(span) is not None for spans in by_rank.values() for span in spans)
    pictures = any(span.name == "conditions" for spans in by_rank.values() for span in spans)
    _legend(draw, bottom + 44, in_blocks=told_apart, pictures=pictures)
    return image


def _row(
    draw: ImageDraw.ImageDraw, top: int, rank: int, spans: list[Span], end: int, *, in_blocks: bool
) -> None:
    scale = (WIDTH - LEFT - RIGHT) / end
    middle = top + ROW / 2
    draw.text((LEFT - 12, middle), f"rank {rank}", INK, _font(18), anchor="rm")
    draw.rectangle((LEFT, top, WIDTH - RIGHT, top + ROW), IDLE)
    busy = 0
    for span in spans:
        color = _color(span, in_blocks=in_blocks)
        if color is None:
            continue
        busy += span.end - span.begin
        left, right = (LEFT + moment * scale for moment in (span.begin, span.end))
        # One pixel stays free, to tell adjacent spans apart.
        draw.rectangle((left, top, max(left, right - 1), top + ROW), color)
        if span.category == STAGE and right - left > 60:
            draw.text(
                ((left + right) / 2, middle), f"{span.about['request'] + 1}", BACK, _font(16), anchor="mm"
            )
    draw.text((WIDTH - RIGHT + 10, middle), f"busy {100 * busy / end:.0f} %", GREY, _font(18), anchor="lm")


def _color(span: Span, *, in_blocks: bool) -> str | None:
    """Return the colour of a trace span in the picture, or None if it is not drawn."""
    if not in_blocks or span.name in ("encode", "conditions"):
        if span.category != STAGE:
            return None
        color = COLORS[span.name]
        # Shades alternate, so that neighbouring requests can be told apart.
        return _lighter(color) if span.about.get("request", 0) % 2 else color
    if span.category != STEP:
        return None
    block = _block(span)
    if block is None:
        return COLORS["decode" if span.name.startswith("decode") else "denoise"]
    return BLOCKS[block % len(BLOCKS)]


def _plain(span: Span) -> Span:
    """Return a copy of a trace span, renamed to "denoise" if the span is a step of a frame block.

    It is used if a video has too many blocks to tell their colours apart; then all blocks get one colour.
    """
    return replace(span, name="denoise") if _block(span) is not None else span


def _block(span: Span) -> int | None:
    """Return the index of the frame block that a trace span denoises, or None if it denoises none."""
    if span.category == STEP and span.name.startswith("block "):
        return int(span.name.removeprefix("block ").partition(",")[0])
    return None


def _axis(draw: ImageDraw.ImageDraw, seconds: float, bottom: int) -> None:
    unit, name = (60.0, "min") if seconds > 180 else (1.0, "s")
    rough = seconds / unit / 8  # for about eight marks
    power = 10.0 ** floor(log10(rough))
    step = next(part * power for part in STEPS if part * power >= rough)
    width = WIDTH - LEFT - RIGHT
    for number in range(floor(seconds / unit / step) + 1):
        x = LEFT + width * number * step * unit / seconds
        draw.line((x, TOP - 8, x, bottom), "#d5d9df", 1)
        draw.text((x, bottom + 6), f"{number * step:g} {name}", GREY, _font(16), anchor="ma")


def _legend(draw: ImageDraw.ImageDraw, top: int, *, in_blocks: bool, pictures: bool) -> None:
    entries = {name: COLORS[name] for name in ("encode", *["conditions"] * pictures, "denoise", "decode")}
    if in_blocks:
        names = {"denoise": "a colour for each block"}
        entries = {names.get(name, name): color for name, color in entries.items()}
        entries[names["denoise"]] = BLOCKS[1]
    x = float(LEFT)
    for name, color in {**entries, "waiting": IDLE}.items():
        draw.rectangle((x, top, x + 18, top + 18), color)
        draw.text((x + 26, top + 9), name, INK, _font(16), anchor="lm")
        x += 26 + draw.textlength(name, _font(16)) + 30


def _lighter(color: str) -> str:
    parts = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{(3 * part + 255) // 4:02x}" for part in parts)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
