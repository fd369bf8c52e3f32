"""Model family of Wan 2.1, Wan 2.2 A14B and Wan 2.2 TI2V-5B, built on diffusers' classes."""

from paradit.models.registry import Family

FAMILY = Family(
    pipelines=("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanDMDPipeline"),
    presets={"WanDMDPipeline": "fastwan-3"},
    read_spec="paradit.models.wan.spec:read_spec",
    model="paradit.models.wan.adapter:WanModel",
    transformers=("WanTransformer3DModel",),
    forward_patch="paradit.models.wan.patch:FORWARD_PATCH",
    samples="paradit.models.wan.random_weights",
)
