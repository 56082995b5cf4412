"""Knowledge distillation with soft targets: the student learns the teacher's whole answer, softened by a temperature.

loss = soft * T^2 KL(softmax(teacher / T) || softmax(student / T)) + (1 - soft) * loss on the labels; see
`objective.soft_target_loss`. Usable alone: `penjing.soft_target_loss(student_logits, teacher_logits, temperature=4)`.
With `match` something else of the teacher's answers is learned instead: see `penjing.objective.teachers_answers`.
Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
"""

from typing import ClassVar

from pydantic import Field

from penjing.distillation.unseen import without_classes
from penjing.training import BASELINE, PartlyTrainedStage, Workbench


class Distill(PartlyTrainedStage):
    """Train the network on the soft targets of a teacher, by default of the network that the recipe started from."""

    label: ClassVar[str] = "distill"
    needs: ClassVar[tuple[str, ...]] = ("a teacher",)
    teacher: str | tuple[str, ...] | None = Field(
        default=BASELINE, description='whom to learn from: "baseline", a stage\'s name, a .pj file; or several'
    )
    without: tuple[int | str, ...] = Field(
        default=(), description="classes that the transfer set does not have: numbers or names"
    )

    def apply(self, bench: Workbench) -> None:
        task = without_classes(bench.task, self.without) if self.without else None
        bench.train(self.schedule(), self.parts(bench), task=task)
