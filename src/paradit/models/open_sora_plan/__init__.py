"""Model family of Open-Sora-Plan v1.3, whose modules are ParaDiT's own, because diffusers has none."""

from paradit.models.registry import Family

FAMILY = Family(
    pipelines=("OpenSoraPlanPipeline",),
    read_spec="paradit.models.open_sora_plan.spec:read_spec",
    takes_loras=False,
    checkpoint="paradit.models.open_sora_plan.checkpoint:find",
    model="paradit.models.open_sora_plan.adapter:OpenSoraPlanModel",
    classes={
        "OpenSoraT2V_v1_3": "paradit.models.open_sora_plan.module:OpenSoraT2V_v1_3",
        "OpenSoraInpaint_v1_3": "paradit.models.open_sora_plan.module:OpenSoraInpaint_v1_3",
        "WFVAEModel": "paradit.models.open_sora_plan.wf_vae:WFVAEModel",
    },
)
