"""A stage: one step of a recipe, a setting of surgeries, representations and objectives plus a training schedule."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn

from penjing.artifact import Speed
from penjing.errors import SettingError, nearest
from penjing.graph import Network
from penjing.settings import Settings
from penjing.shapes import Json
from penjing.training.fit import History, Schedule, fit_, new_accelerator
from penjing.training.journal import Journal
from penjing.training.part import AverageWeights, LearnFromLabels, LearnFromTeacher, Match, Part
from penjing.training.progress import Reporter, Silent
from penjing.training.seeding import derive_seed, seed_everything, seed_loader
from penjing.training.task import Batch, Task

BASELINE = "baseline"


class Workbench:
    """What a stage works on and with. `Workbench(network, task)` is enough to carry out a stage by itself.

    Attributes:
        network: the network as it now is; a stage puts the changed one here.
        task: data, loss, metric.
        key: the stage's place in the run, "03-prune-channels"; names its trainings and decisions.
        teachers: networks that stages may learn from, by name; always "baseline".
        warnings: what the user should know of this stage.
        facts: what the stage has to tell the report.
        standing: what must be done again after every later stage, by name, such as choosing exit thresholds.
        kept: by step, the weights that the run's first training to keep that step kept; 0: the initial ones.
        speed: how files are written; what stages ask a size of is written so.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        key: str = "stage",
        seed: int = 0,
        journal: Journal | None = None,
        accelerator: Accelerator | None = None,
        reporter: Reporter | None = None,
        teachers: Mapping[str, nn.Module] | None = None,
        standing: dict[str, Callable[[Workbench], None]] | None = None,
        kept: dict[int, dict[str, Tensor]] | None = None,
        speed: Speed = "small",
    ) -> None:
        self.speed: Speed = speed
        self.network, self.task, self.key, self.seed = network, task, key, seed
        self.accelerator = accelerator or new_accelerator()
        self.journal = journal or Journal(None, self.accelerator)
        self.reporter = reporter or Silent()
        self.teachers = teachers or {}
        self.standing = {} if standing is None else standing
        self.kept = {} if kept is None else kept
        self.warnings: list[str] = []
        self.facts: dict[str, Json] = {}
        self.history: dict[str, History] = {}

    def train(self, schedule: Schedule, parts: Sequence[Part], name: str = "") -> History:
        """Train the network; a training that an earlier process finished is read instead."""
        where = f"{self.key} {name}".strip()
        history = fit_(
            self.network,
            self.task,
            schedule,
            parts,
            accelerator=self.accelerator,
            seed=self.seed,
            where=where,
            keep=self.journal.training(where.replace(" ", "-")),
            reporter=self.reporter,
        )
        self.history[name] = history
        for step, weights in history.weights.items():
            self.kept.setdefault(step, weights)
        return history

    def decide(self, name: str, compute: Callable[[], Json]) -> Json:
        """A decision that comes from a measurement: written down the first time, replayed ever after."""

        def seeded() -> Json:
            seed = derive_seed(self.seed, self.key, name)
            seed_everything(seed)
            seed_loader(self.task.train, seed)
            return compute()

        value = self.journal.decide(f"{self.key}/{name}", seeded)
        seed_everything(derive_seed(self.seed, self.key, name, "end"))
        return value

    def samples(self, name: str, n: int) -> list[Batch]:
        """Whole batches of the training set with at least `n` samples, or all; which ones depends on the seed and the name."""
        seed = derive_seed(self.seed, self.key, name)
        seed_everything(seed)
        seed_loader(self.task.train, seed)
        found: list[Batch] = []
        for batch in self.task.batches(self.task.train, self.accelerator.device):
            found.append(batch)
            if sum(b.size for b in found) >= n:
                break
        seed_everything(derive_seed(self.seed, self.key, name, "end"))
        return found

    def teacher(self, name: str, where: str) -> nn.Module:
        """A copy of the teacher of that name, ready to answer.

        Raises: SettingError: there is none at this point of the recipe, with the names there are.
        """
        if name not in self.teachers:
            raise SettingError(
                f'{where}: there is no teacher "{name}" yet at this stage; {nearest(name, self.teachers)}.'
            )
        return copy.deepcopy(self.teachers[name]).eval()

    def warn(self, text: str) -> None:
        """Tell the user, now and in the report."""
        self.warnings.append(text)
        self.reporter.say(f"  [yellow]note[/yellow] {text}")


class Stage(Settings):
    """Base of all stages. Subclasses are final; `label` is their word in a recipe.

    Attributes:
        needs: what must be there, for `--dry-run`.
    """

    label: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    name: str | None = Field(default=None, description="what other stages call its result, to learn from it")

    @abstractmethod
    def apply(self, bench: Workbench) -> None:
        """Change `bench.network`."""

    def planned_epochs(self) -> int:
        """Passes over the training set, for the estimate of the time left."""
        return 0


class TrainedStage(Stage):
    """Base of stages that train. What a network learns from is the same choice in all of them."""

    epochs: int = Field(default=1, ge=0, description="passes over the training set")
    lr: float = Field(default=1e-3, gt=0, description="largest learning rate")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw, or sgd with Nesterov momentum 0.9")
    weight_decay: float = Field(default=0.0, ge=0, description="pull towards zero, weights only")
    decay: Literal["cosine", "constant"] = Field(default="cosine", description="how the learning rate falls")
    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="fraction of the steps in which the learning rate rises"
    )
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    average: float | None = Field(
        default=None, gt=0, lt=1, description="decay of a moving average that replaces the weights"
    )
    keep_steps: tuple[int, ...] = Field(default=(), description="steps whose weights are kept, 0 for the initial ones")
    teacher: str | None = Field(
        default=None, description='whom to learn from besides the labels: "baseline" or a stage\'s name'
    )
    match: Match = Field(
        default="soft-targets",
        description="what of the teacher's answers is learned: soft-targets, logits, decoupled (DKD) or dist (DIST)",
    )
    temperature: float = Field(
        default=4.0, gt=0, description="how much the teacher's answers are softened; logits never are"
    )
    soft: float = Field(default=0.9, ge=0, le=1, description="weight of the teacher; the labels have 1 - soft")

    def schedule(self, epochs: int | None = None) -> Schedule:
        """The training schedule, by default of `epochs` passes."""
        return Schedule(
            epochs=self.epochs if epochs is None else epochs,
            lr=self.lr,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            decay=self.decay,
            warmup=self.warmup,
            clip_norm=self.clip_norm,
            keep_steps=self.keep_steps,
        )

    def parts(self, bench: Workbench) -> list[Part]:
        """What the network learns from, and the moving average where one is asked for."""
        found: list[Part] = []
        if self.teacher is None:
            found.append(LearnFromLabels())
        else:
            teacher = bench.teacher(self.teacher, self.where())
            found.append(LearnFromTeacher(teacher, self.temperature, self.soft, self.match))
            if self.soft < 1:
                found.append(LearnFromLabels(1 - self.soft))
        if self.average is not None:
            found.append(AverageWeights(self.average))
        return found

    def planned_epochs(self) -> int:
        return self.epochs


class Train(TrainedStage):
    """Plain training. First in a recipe, it makes the baseline."""

    label: ClassVar[str] = "train"
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    keep_steps: tuple[int, ...] = Field(
        default=(0,), description="steps whose weights are kept, 0 for the initial ones"
    )

    def apply(self, bench: Workbench) -> None:
        bench.train(self.schedule(), self.parts(bench))


def described(stage: type[Stage]) -> list[tuple[str, str, Any, str]]:
    """(setting, type, default, description) of a stage, for `--help` and the documentation."""
    rows = []
    for name, info in stage.model_fields.items():
        rows.append((name, _spoken(info.annotation), info.default, info.description or ""))
    return rows


def _spoken(kind: Any) -> str:
    """A type as people write it: Literal["a", "b"] as a | b, tuple[X, ...] as list of X, dict[str, X] as X by name."""
    if get_origin(kind) is tuple:
        return f"list of {_spoken(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return f"{_spoken(get_args(kind)[1])} by name"
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return " | ".join("none" if part is type(None) else _spoken(part) for part in get_args(kind))
    return getattr(kind, "__name__", str(kind)) if not get_args(kind) else str(kind)
