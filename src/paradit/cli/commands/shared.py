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
        help="Variant of the weights, such as fp16. [default: those without a variant, else the only one]",
        metavar="NAME",
    ),
]
Lora = Annotated[
    list[str] | None,
    Option(
        also=("loras", "lora-path", "lora-weights", "adapter"),
        help="LoRA to merge into the model: a .safetensors file, ID/FILE.safetensors on the hub, or the name "
        "of a bundled one. SCALE: its strength; EXPERT: high or low, if the model has two. May be repeated.",
        metavar="FILE[=SCALE][@EXPERT]",
    ),
]
Width = Annotated[
    int | None, Option(help="Width in pixels, instead of --size. [default: the model's]", metavar="W")
]
Height = Annotated[
    int | None, Option(help="Height in pixels, instead of --size. [default: the model's]", metavar="H")
]
Size = Annotated[
    str | None,
    Option(
        also=("resolution", "video-size"),
        help="Width and height in pixels, multiples of 16. [default: the model's]",
        metavar="WxH",
    ),
]
GuidanceScale = Annotated[
    float | None,
    Option(
        also=("cfg", "cfg-scale", "guidance"),
        help="How closely to follow the prompt; 1: no guidance. [default: the model's]",
        metavar="G",
    ),
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
        help="Compression: 0 (lossless) to 51, in .webm to 63; higher: smaller and worse. [default: 18, in "
        ".webm 24]",
        metavar="N",
    ),
]
NoMetadata = Annotated[bool, Option(help="Do not write prompt, seed and model into the file.")]
Overwrite = Annotated[bool, Option(also=("force",), help="Replace existing files.")]
Verbose = Annotated[
    bool,
    Option(
        also=("debug", "log"), help="Also log to stderr what is decided and why, with time, rank and module."
    ),
]
JsonLines = Annotated[bool, Option(help="Write one JSON object per line to stdout.")]
JsonObject = Annotated[bool, Option(help="Write one JSON object to stdout.")]
