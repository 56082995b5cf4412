"""What the result may cost, and whether it does."""

from typing import Any

from pydantic import Field, field_validator

from penjing.measurement import BudgetLine, Record
from penjing.settings import Settings
from penjing.units import parse_bytes, parse_count, parse_latency_ms, parse_points, show_bytes, show_count


class Budget(Settings):
    """Limits on what is measured. All are checked after every stage and at the end.

    `drop` is met when the upper end of the paired 95 % interval of the loss in the metric is within it.
    """

    label = "budget"
    file: int | None = Field(
        default=None, gt=0, description='bytes of the artifact, "60 kB" (1000 B), "60 KiB" (1024 B)'
    )
    parameters: int | None = Field(default=None, gt=0, description='numbers in the network, "6.4k"')
    macs: int | None = Field(default=None, gt=0, description='multiply-accumulates of one sample on average, "1.5 M"')
    latency: float | None = Field(default=None, gt=0, description='one sample on one thread, "5 ms"')
    drop: float | None = Field(default=None, description='loss in the metric against the baseline, "1 pp"')

    @field_validator("file", mode="before")
    @classmethod
    def _file(cls, value: Any) -> Any:
        return parse_bytes(value, "budget: file") if isinstance(value, (int, str)) else value

    @field_validator("parameters", "macs", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        return parse_count(value, "budget") if isinstance(value, (int, str)) else value

    @field_validator("latency", mode="before")
    @classmethod
    def _latency(cls, value: Any) -> Any:
        return parse_latency_ms(value, "budget: latency") if isinstance(value, (int, float, str)) else value

    @field_validator("drop", mode="before")
    @classmethod
    def _drop(cls, value: Any) -> Any:
        return parse_points(value, "budget: drop") if isinstance(value, (int, float, str)) else value

    @field_validator("*", mode="before")
    @classmethod
    def _quantity(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("must be a quantity")
        return value

    def check(self, record: Record) -> list[BudgetLine]:
        """Each limit against what was measured."""
        lines: list[BudgetLine] = []

        def line(name: str, limit: float | None, measured: float | None, show: Any) -> None:
            if limit is None:
                return
            if measured is None:
                lines.append(BudgetLine(name, limit, float("nan"), False, f"{name}: not measured"))
                return
            met = measured <= limit
            text = f"{name}: {show(measured)} of at most {show(limit)}, {'met' if met else 'not met'}"
            lines.append(BudgetLine(name, limit, measured, met, text))

        line("file", self.file, record.file_bytes, lambda v: show_bytes(int(v)))
        line("parameters", self.parameters, record.parameters, show_count)
        line("macs", self.macs, record.macs, show_count)
        line("latency", self.latency, record.latency_ms.median if record.latency_ms else None, lambda v: f"{v:.3g} ms")
        line("drop", self.drop, record.drop.high if record.drop else None, lambda v: f"{100 * v:.2f} pp")
        return lines
