"""Model family of Open-Sora-Plan v1.3: only its sizes, for the planner. ParaDiT does not run it."""

from paradit.models.registry import Family

FAMILY = Family(pipelines=("OpenSoraPlanPipeline",), read_spec="paradit.models.open_sora_plan.spec:read_spec")
