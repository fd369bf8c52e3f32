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
        help="LoRA to merge into the model: a .safetensors file, ID[@REV]/FILE.safetensors on the hub, or "
        "the name of a bundled one. SCALE: its strength; EXPERT: high or low, if the model has two. May be "
        "repeated.",
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


def _schedulers() -> str:
    from paradit.models.flow_schedulers import FLOW_SCHEDULERS

    names = "; ".join(f"{name} ({one.help})" for name, one in FLOW_SCHEDULERS.items())
    return f"Scheduler: {names}. [default: the one in the model's folder]"


def _presets() -> str:
    from paradit.config.presets import presets

    names = "; ".join(f"{name} ({one.about})" for name, one in presets().items())
    return f"Settings for few steps, for what other options leave out: {names}."


Preset = Annotated[str | None, Option(help=_presets, metavar="NAME")]
Scheduler = Annotated[str | None, Option(also=("sampler", "solver"), help=_schedulers, metavar="NAME")]
Shift = Annotated[
    float | None,
    Option(
        also=("flow-shift", "sample-shift"),
        help="Timestep shift: more of the steps at high noise. [default: the model's]",
        metavar="X",
    ),
]
Timesteps = Annotated[
    str | None,
    Option(
        also=("steps-at", "denoising-step-list"),
        help="Timesteps of the steps before the shift, such as 1000,750,500,250, instead of "
        "--num-inference-steps. [default: the scheduler's]",
        metavar="LIST",
    ),
]
ExpertStep = Annotated[
    int | None,
    Option(
        help="Step, counted from 0, at which the low-noise expert takes over, for models with two experts. "
        "[default: by the model's boundary]",
        metavar="N",
    ),
]
GuidanceScale2 = Annotated[
    float | None,
    Option(
        also=("cfg-2",),
        help="Guidance scale of the low-noise expert, for models with two experts. [default: the model's, or "
        "--guidance-scale if that is given]",
        metavar="G",
    ),
]
Image = Annotated[
    str | None,
    Option(
        also=("first-image", "input-image", "i"),
        help="Picture of the first frame, for a model that takes one. The video gets its aspect, unless a "
        "size is given.",
        metavar="FILE",
    ),
]
LastImage = Annotated[
    str | None,
    Option(
        also=("end-image", "last-frame"),
        help="Picture of the last frame, for a model that takes one; most need --image, too.",
        metavar="FILE",
    ),
]
Video = Annotated[
    str | None,
    Option(
        also=("input-video",),
        help="Video to change, for a model that takes one; its frames are converted to --fps, and cut to "
        "--num-frames.",
        metavar="FILE",
    ),
]
Strength = Annotated[
    float | None,
    Option(
        also=("denoising-strength",),
        help="With --video: fraction of the denoising steps that it goes through, up to 1, which keeps "
        "nothing of it. [default: 0.8]",
        metavar="S",
    ),
]
Fit = Annotated[
    str,
    Option(
        also=("resize-mode", "crop"),
        help="How a picture or video of another aspect is fitted to the size: cover (what sticks out is cut "
        "off), contain (black bars) or stretch.",
        metavar="HOW",
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
