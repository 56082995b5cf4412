"""The first of two steps of FitNets: the lower part of the student learns what a layer of the teacher gives, and nothing else.

    - hint: {layers: {layer2: layer2}, epochs: 3}        up to that layer; what lies above has no gradient and stays
    - distill: {epochs: 10, soft: 0.8, last_soft: 0.5}   then all of it, as usual, the teacher's weight falling

Source: Romero et al. 2015, arXiv:1412.6550, section 2.4, algorithm 1.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from penjing.errors import SettingError
from penjing.training import BASELINE, Part, TrainedStage, Workbench
from penjing.training.stage import Hints
from penjing.training.teaching import LayerMatch, Regressor

_OF_ANSWERS = ("agree", "match", "temperature", "soft", "last_soft", "hints")


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

    @model_validator(mode="after")
    def _layers_only(self) -> Self:
        unused = [key for key in _OF_ANSWERS if key in self.model_fields_set]
        if unused:
            raise SettingError(f"hint: only layers are looked at here, so {unused[0]} says nothing; leave it out.")
        if len(self.teachers) > 1:
            raise SettingError(f"hint: the layers are one teacher's, got {len(self.teachers)} teachers. Name one.")
        return self

    def parts(self, bench: Workbench) -> list[Part]:
        hints = Hints(layers=self.layers, match=self.compare, regressor=self.regressor, token=self.token)
        return [hints.part(self.named_teacher(bench)), *self.averages()]

    def apply(self, bench: Workbench) -> None:
        bench.train(self.schedule(), self.parts(bench))
