"""The stage that makes a network slimmable."""

from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from penjing.dynamic.sandwich import Sandwich
from penjing.dynamic.slimmable import check_widths, in_order_of_importance, make_slimmable, measure_widths_
from penjing.errors import SettingError
from penjing.training import TrainedStage, Workbench
from penjing.training.self_teaching import LearnFromLastAnswer


class Slimmable(TrainedStage):
    """Make a network that works at several widths, with one set of weights, and train all of them together.

    Narrower selves are answers of the network, labelled "width 0.25" and so on; `network.leave_at(k)` chooses one.
    Sources: Yu et al. 2019, arXiv:1812.08928 (norms of their own, sum of losses); Yu and Huang 2019, arXiv:1903.05134
    (universal: the sandwich rule, in-place distillation, norms measured after training).
    """

    label: ClassVar[str] = "slimmable"
    needs: ClassVar[tuple[str, ...]] = ("labels or a teacher",)
    widths: tuple[float, ...] = Field(
        default=(0.25, 0.5, 0.75), description="shares of the channels, in (0, 1); the whole network is there besides"
    )
    universal: bool = Field(
        default=False,
        description="train at random widths too (sandwich rule, in-place distillation), so that any width can be cut out",
    )
    between: int = Field(default=2, ge=0, description="universal: random widths a step, besides the narrowest and 1")
    in_place: float | None = Field(
        default=None, ge=0, le=1, description="weight of the widest as the narrower ones' teacher; universal: 1"
    )
    ordered: bool = Field(
        default=True, description="put channels in order of importance first, so that narrow selves begin with the best"
    )
    rounded: bool = Field(default=False, description="round widths to whole channels, instead of refusing others")
    samples: int = Field(default=2000, ge=1, description="universal: training samples that norms are measured on")

    @field_validator("widths")
    @classmethod
    def _widths(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(check_widths(value, cls.where()))

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        if self.in_place is not None and self.teacher is not None:
            raise ValueError("choose a teacher or in_place, not both")
        return self

    def apply(self, bench: Workbench) -> None:
        if any(node.settings.get("label", "").startswith("width") for node in bench.network.exits):
            raise SettingError(f"{self.label}: the network is slimmable already.")
        if self.ordered:
            bench.network = in_order_of_importance(bench.network)
            bench.kept.clear()  # those weights have the old order
        soft = 1.0 if self.in_place is None and self.universal else self.in_place
        parts = self.parts(bench)
        if self.universal:
            sandwich = Sandwich(self.widths[0], between=self.between, soft=soft or 0.0)
            bench.train(self.schedule(), [*parts, sandwich])
            bench.network = make_slimmable(bench.network, self.widths, rounded=self.rounded)
            bench.network.to(bench.accelerator.device)
            measure_widths_(bench.network, bench.samples("norms", self.samples))
        else:
            bench.network = make_slimmable(bench.network, self.widths, rounded=self.rounded)
            if soft is not None:
                parts = [LearnFromLastAnswer(soft, self.temperature), *self.averages()]
            bench.train(self.schedule(), parts)
        bench.facts["widths"] = [*self.widths, 1.0]
