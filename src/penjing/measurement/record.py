"""What is measured of a network, and how it is written down: the schema of `report.json`, version 1."""

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class MetricValue:
    """A metric over n samples with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    n: int
    higher_is_better: bool = True


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `total`; low and high are the 95 % Wilson interval of the fraction."""

    correct: int
    total: int
    low: float
    high: float


@dataclass(frozen=True)
class Drop:
    """How much worse than the baseline on the same samples, as a fraction; positive is worse. 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one sample: median over repetitions, and the quartiles of their spread."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class OperatingPoint:
    """One way to run a network that adjusts its cost: an exit taken by all, or the stored thresholds.

    Attributes:
        name: "exit 0", "exit 1" ... "final" for everybody leaving there; "thresholds" for samples leaving when confident.
        metric: on the set that the record is measured on.
        macs: mean multiply-accumulates a sample of what is computed: where everybody leaves at one exit, only what that one
            needs.
        latency_ms: one sample, None where it was not measured.
        share: fraction of the samples that leave here under the stored thresholds.
        threshold: the stored one, None for the final answer.
        own_bytes: of a file of this answer alone, None where that is not a network of its own.
    """

    name: str
    metric: MetricValue
    macs: float
    latency_ms: Latency | None = None
    share: float | None = None
    threshold: float | None = None
    own_bytes: int | None = None


@dataclass(frozen=True)
class BudgetLine:
    """One limit: what was asked, what was measured, whether it is met."""

    name: str
    limit: float
    measured: float
    met: bool
    text: str


@dataclass(frozen=True)
class Record:
    """What one network measures: the baseline, the result of a stage, or the final one.

    Attributes:
        name: the stage's label in the recipe.
        data: "valid" or "test": where metric, accuracy, drop and operating points come from.
        metric, accuracy, drop: see there; accuracy only for classification; drop against the baseline.
        parameters: numbers in weights, biases and norms as the layers use them.
        nonzero: how many of them are not zero.
        macs: multiply-accumulates of one sample on average over the set, exits included.
        macs_full: of a sample that goes all the way without any exit's head.
        file_bytes: of the artifact, as it lies on the disk.
        latency_ms: one sample at a time, one thread; baseline_latency_ms: of the baseline, taking turns with it.
        peak_memory_bytes: weights plus the largest sum of live activations of one sample.
        resident_bytes: the process's resident size after running it.
        layer_bytes: bytes in the file by layer.
        operating_points: for networks with exits.
        budget: limits that apply to this stage.
        warnings: what a user should know.
        facts: what the stage has to say, by name: channels removed, reasons, thresholds.
        seconds: duration of the stage, measuring not included.
    """

    name: str
    data: str
    metric: MetricValue
    parameters: int
    nonzero: int
    macs: float
    macs_full: int
    file_bytes: int
    accuracy: Accuracy | None = None
    drop: Drop | None = None
    latency_ms: Latency | None = None
    baseline_latency_ms: Latency | None = None
    peak_memory_bytes: int = 0
    resident_bytes: int | None = None
    layer_bytes: dict[str, int] = field(default_factory=dict)
    operating_points: list[OperatingPoint] = field(default_factory=list)
    budget: list[BudgetLine] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As `report.json` has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Record":
        """The inverse of `to_json`."""
        known = dict(value)
        known["metric"] = MetricValue(**value["metric"])
        for name, kind in (
            ("accuracy", Accuracy),
            ("drop", Drop),
            ("latency_ms", Latency),
            ("baseline_latency_ms", Latency),
        ):
            if value.get(name) is not None:
                known[name] = kind(**value[name])
        known["operating_points"] = [_point(point) for point in value["operating_points"]]
        known["budget"] = [BudgetLine(**line) for line in value["budget"]]
        return cls(**known)


def _point(value: dict[str, Any]) -> OperatingPoint:
    latency = Latency(**value["latency_ms"]) if value["latency_ms"] is not None else None
    return OperatingPoint(**{**value, "metric": MetricValue(**value["metric"]), "latency_ms": latency})
