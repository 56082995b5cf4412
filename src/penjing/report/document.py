"""`report.json`: what it must hold, and how it is read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from penjing.errors import RunError
from penjing.measurement.record import SCHEMA_VERSION, BudgetLine, MetricValue, Record

FILE_NAME = "report.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Task(_Part):
    """What is learnt, and on how many samples."""

    metric: str
    classes: list[str] | None = None
    n_train: int | None = None
    n_valid: int | None = None
    n_test: int | None = None


class BaselineRow(_Part):
    """What the baseline takes when written in a plain way that needs no training."""

    name: str
    file_bytes: Annotated[int, Field(ge=0)]
    metric: MetricValue | None = None


class ArtifactFile(_Part):
    """The file that was delivered; `path` is relative to the run folder."""

    path: str
    bytes: int
    sha256: str


class Histogram(_Part):
    """A tensor's values: counts between edges, and the table they share where they have one."""

    edges: list[float]
    counts: list[int]
    centroids: list[float] | None = None

    @model_validator(mode="after")
    def _edges_enclose_counts(self) -> Self:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.counts)} counts need {len(self.counts) + 1} edges, got {len(self.edges)}")
        return self


class ClassRecall(_Part):
    """Recall of one class of n samples, before and after; None where a class has no samples."""

    label: str = Field(alias="class")
    n: int
    baseline_recall: float | None
    final_recall: float | None


class ChangedPair(_Part):
    """How many samples of class `label` the baseline called one thing and the final network another."""

    label: str
    baseline: str
    final: str
    count: int


class Changed(_Part):
    """On which samples the final network answers otherwise than the baseline."""

    n: int
    both_right: int
    both_wrong_same: int
    both_wrong_other: int
    only_baseline_right: int
    only_final_right: int
    pairs: list[ChangedPair] = []


class SharesOfClass(_Part):
    """Of one class: the fraction of its samples that leaves at each exit, or what they take of each block."""

    label: str = Field(alias="class")
    shares: list[float]


class Exits(_Part):
    """Where samples left under the stored thresholds."""

    names: list[str]
    share: list[float]
    accuracy_of_leavers: list[float | None]
    by_class: list[SharesOfClass] = []

    @model_validator(mode="after")
    def _one_figure_for_each_exit(self) -> Self:
        n = len(self.names)
        rows: list[Sequence[float | None]] = [
            self.share,
            self.accuracy_of_leavers,
            *(row.shares for row in self.by_class),
        ]
        if any(len(row) != n for row in rows):
            raise ValueError(f"every list of figures must have one for each of the {n} exits")
        return self


class Blocks(_Part):
    """What was computed of each block that a gate opens, on average; of channel sets, the share of them."""

    names: list[str]
    share: list[float]
    by_class: list[SharesOfClass] = []

    @model_validator(mode="after")
    def _one_figure_for_each_block(self) -> Self:
        if any(len(row) != len(self.names) for row in (self.share, *(row.shares for row in self.by_class))):
            raise ValueError(f"every list of figures must have one for each of the {len(self.names)} blocks")
        return self


class Report(_Part):
    """A run as `report.json` tells it."""

    schema_version: int
    penjing: str
    name: str
    created: str
    seed: int | None
    duration_seconds: float
    machine: dict[str, Any]
    versions: dict[str, Any]
    recipe_text: str
    task: Task
    baseline: Record
    baseline_valid: Record
    stages: list[Record]
    final: Record
    baseline_rows: list[BaselineRow] = []
    artifact: ArtifactFile
    layers_before: dict[str, int] = {}
    weights: dict[str, Histogram] = {}
    per_class: list[ClassRecall] | None = None
    changed: Changed | None = None
    exits: Exits | None = None
    blocks: Blocks | None = None
    budget: list[BudgetLine] = []
    warnings: list[str] = []


def read_report(run_folder: Path) -> Report:
    """The report of the run in a folder.

    Raises: RunError: there is none, it is damaged, or a newer penjing wrote it.
    """
    path = run_folder / FILE_NAME
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise RunError(
            f"{path}: there is no report of a run here. Give the folder of a finished run; --resume finishes one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error}).") from None
    try:
        value = json.loads(text)  # NaN stands for what was not measured
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path}: is damaged, it is not valid JSON ({error}). Run the recipe again with --resume."
        ) from None
    return parse_report(value, str(path))


def parse_report(value: Any, where: str = FILE_NAME) -> Report:
    """A report from the data of `report.json`.

    Raises: RunError: something is missing or of a wrong kind, or a newer penjing wrote it.
    """
    version = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(version, int) or version < 1:
        raise RunError(f"{where}: is not a report of penjing; it has no schema_version.")
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{where}: was written by a newer penjing (schema {version}; this one reads up to {SCHEMA_VERSION}). "
            "Upgrade penjing to read it."
        )
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        more = f", and {error.error_count() - 1} more like it" if error.error_count() > 1 else ""
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise RunError(
            f"{where}: is damaged at {place}: {message}{more}. Run the recipe again with --resume."
        ) from None
