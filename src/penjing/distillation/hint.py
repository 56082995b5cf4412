"""The first of two steps of FitNets: the lower part of the student learns what a layer of the teacher gives, and nothing else.

    - hint: {layers: {layer2: layer2}, epochs: 3}        up to that layer; what lies above has no gradient and stays
    - distill: {epochs: 10, soft: 0.8, last_soft: 0.5}   then all of it, as usual, the teacher's weight falling

Source: Romero et al. 2015, arXiv:1412.6550, section 2.4, algorithm 1.
"""

from typing import ClassVar, Literal

from pydantic import Field

from penjing.training import BASELINE, AverageEpochs, AverageWeights, Part, TrainedStage, Workbench
from penjing.training.stage import Hints
from penjing.training.teaching import LayerMatch, Regressor


class Hint(TrainedStage):
    """Train layers of the network to give what layers of a teacher give; the answers are not looked at."""

    label: ClassVar[str] = "hint"
    needs: ClassVar[tuple[str, ...]] = ("a teacher",)
    teacher: str | tuple[str, ...] | None = Field(
        default=BASELINE, description="whose layers: a stage's name, or a .pj file"
    )
    layers: dict[str, str] = Field(
        min_length=1, description='by a student layer the teacher layer; or a pattern with "*", and skip or last'
    )
    compare: LayerMatch = Field(default="hint", description="how: hint, attention, patient or similarities")
    regressor: Regressor = Field(
        default="auto", description="a learned layer between them: auto (if shapes differ), always, never"
    )
    token: Literal["all", "first"] = Field(default="all", description="in transformers: all tokens, or the first only")

    def parts(self, bench: Workbench) -> list[Part]:
        hints = Hints(layers=self.layers, match=self.compare, regressor=self.regressor, token=self.token)
        found: list[Part] = [hints.part(self.named_teacher(bench))]
        if self.average is not None:
            found.append(AverageWeights(self.average))
        if self.average_epochs is not None:
            found.append(AverageEpochs(self.average_epochs))
        return found

    def apply(self, bench: Workbench) -> None:
        bench.train(self.schedule(), self.parts(bench))
