"""Knowledge distillation: a small network learns from a large one."""

from penjing.distillation.hint import Hint
from penjing.distillation.soft_targets import Distill
from penjing.distillation.student import Student
from penjing.distillation.unseen import CorrectBiases, best_shift, shift_logits, without_classes
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {stage.label: stage for stage in (Student, Distill, Hint, CorrectBiases)}

__all__ = ["STAGES", "CorrectBiases", "Distill", "Hint", "Student", "best_shift", "shift_logits", "without_classes"]
