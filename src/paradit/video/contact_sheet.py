"""Drawing of contact sheets: several videos on one picture, each as a row of frames. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paradit.video.frame import Frame

MARGIN = 4
TEXT_SIZE = 14
INK, PAPER = (30, 30, 30), (255, 255, 255)


def contact_sheet(
    videos: Sequence[Frame], captions: Sequence[str] | None = None, columns: int = 8
) -> Image.Image:
    """Draw a picture with one row for each video: `columns` evenly spaced frames, under the video's caption.

    Each video is uint8 `[F, H, W, 3]`. Its first and last frame are always shown; a video with fewer frames
    fills fewer columns. Raises `ValueError` if there is no video, or if the numbers of captions and videos
    differ.
    """
    if not videos or columns < 1:
        raise ValueError("a contact sheet needs a video and a column")
    if captions is not None and len(captions) != len(videos):
        raise ValueError(f"{len(videos)} videos have {len(captions)} captions")
    text_height = TEXT_SIZE + MARGIN if captions is not None else 0
    cell_width = max(video.shape[2] for video in videos) + MARGIN
    heights = [video.shape[1] + text_height + MARGIN for video in videos]
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, sum(heights) + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    y = MARGIN
    for row, (video, height) in enumerate(zip(videos, heights, strict=True)):
        if captions is not None:
            draw.text((MARGIN, y), captions[row], fill=INK, font=font)
        count = min(columns, len(video))
        for column, index in enumerate(np.linspace(0, len(video) - 1, count).round().astype(int)):
            sheet.paste(Image.fromarray(video[index]), (MARGIN + column * cell_width, y + text_height))
        y += height
    return sheet
