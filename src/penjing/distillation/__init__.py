"""Knowledge distillation: a small network learns from a large one."""

from penjing.distillation.soft_targets import Distill
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {stage.label: stage for stage in (Distill,)}

__all__ = ["STAGES", "Distill"]
