"""Plug-in with a model family: CogVideoX text-to-video, by diffusers' classes."""

from paradit.models.registry import Family

FAMILY = Family(
    pipelines=("CogVideoXPipeline",),
    read_spec="paradit_cogvideox.spec:read_spec",
    model="paradit_cogvideox.model:CogVideoXModel",
)
