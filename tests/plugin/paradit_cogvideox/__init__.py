"""CogVideoX from text, over diffusers' classes."""

from paradit.models.registry import Family

FAMILY = Family(
    pipelines=("CogVideoXPipeline",),
    read_spec="paradit_cogvideox.spec:read_spec",
    model="paradit_cogvideox.model:CogVideoXModel",
)
