"""Model family of HunyuanVideo (text to video), built on diffusers' classes."""

from paradit.models.registry import COMPONENTS, Family

FAMILY = Family(
    pipelines=("HunyuanVideoPipeline",),
    read_spec="paradit.models.hunyuan_video.spec:read_spec",
    model="paradit.models.hunyuan_video.adapter:HunyuanVideoModel",
    components=(*COMPONENTS, "text_encoder_2", "tokenizer_2"),
    transformers=("HunyuanVideoTransformer3DModel",),
    forward_patch="paradit.models.hunyuan_video.patch:FORWARD_PATCH",
)
