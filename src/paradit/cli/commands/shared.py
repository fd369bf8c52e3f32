"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

from paradit.config.options import Option

Revision = Annotated[
    str | None,
    Option(
        also=("branch", "commit"),
        help="Branch, tag or commit of a model on the hub. [default: newest]",
        metavar="REV",
    ),
]
Variant = Annotated[
    str | None,
    Option(
        help="Weights to load, such as fp16. [default: the plain ones, else the only variant]", metavar="NAME"
    ),
]
Width = Annotated[
    int | None, Option(help="Width in pixels, instead of --size. [default: the model's]", metavar="W")
]
Height = Annotated[
    int | None, Option(help="Height in pixels, instead of --size. [default: the model's]", metavar="H")
]
NumFrames = Annotated[
    int | None,
    Option(
        also=("frames", "video-length"), help="Number of frames, 4n+1. [default: the model's]", metavar="N"
    ),
]
NumInferenceSteps = Annotated[
    int | None,
    Option(
        also=("steps", "num-steps", "sampling-steps"),
        help="Denoising steps. [default: the model's]",
        metavar="N",
    ),
]
Crf = Annotated[
    int | None,
    Option(
        also=("quality",),
        help="Quality of the file: 0 (lossless) to 51, in .webm to 63; larger is smaller. [default: 18, "
        "in .webm 24]",
        metavar="N",
    ),
]
Overwrite = Annotated[bool, Option(also=("force",), help="Replace files that exist.")]
Verbose = Annotated[
    bool,
    Option(also=("debug", "log"), help="Also say on stderr what is decided, and why: time, rank, module."),
]
JsonLines = Annotated[bool, Option(help="Write one JSON object per line to stdout.")]
JsonObject = Annotated[bool, Option(help="Write one JSON object to stdout.")]
