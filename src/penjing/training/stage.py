"""A stage: one step of a recipe, a setting of surgeries, representations and objectives plus a training schedule."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from accelerate import Accelerator
from pydantic import Field, field_validator
from torch import Tensor, nn

from penjing.artifact import Speed, load
from penjing.errors import SettingError, nearest
from penjing.graph import Network
from penjing.settings import Settings
from penjing.shapes import Json
from penjing.training.averages import AverageEpochs, AverageWeights
from penjing.training.fit import History, Schedule, fit_, new_accelerator
from penjing.training.journal import Journal
from penjing.training.part import Freeze, LearnFromLabels, Part
from penjing.training.progress import Reporter, Silent
from penjing.training.seeding import derive_seed, seed_everything, seed_loader
from penjing.training.task import Batch, Task
from penjing.training.teacher import Agree, Teacher
from penjing.training.teaching import LayerMatch, LearnFromLayers, LearnFromTeacher, Match, Regressor

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

    def train(self, schedule: Schedule, parts: Sequence[Part], name: str = "", *, task: Task | None = None) -> History:
        """Train the network, on another task if one is given; a training that an earlier process finished is read instead."""
        where = f"{self.key} {name}".strip()
        history = fit_(
            self.network,
            task or self.task,
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
        """A copy of the teacher of that name, or the network in a file, ready to answer.

        Raises: SettingError: there is none at this point of the recipe, with the names there are. ArtifactError: no sound file.
        """
        if is_file(name):
            return load(name)
        if name not in self.teachers:
            raise SettingError(
                f'{where}: there is no teacher "{name}" yet at this stage; {nearest(name, self.teachers)}.'
            )
        return copy.deepcopy(self.teachers[name]).eval()

    @property
    def answers_folder(self) -> Path | None:
        """Where answers of teachers are kept."""
        return self.journal.folder / "answers" if self.journal.folder is not None else None

    def warn(self, text: str) -> None:
        """Tell the user, now and in the report."""
        self.warnings.append(text)
        self.reporter.say(f"  [yellow]note[/yellow] {text}")


def is_file(teacher: str) -> bool:
    """Whether a teacher is a file and not a stage's name."""
    return teacher.endswith(".pj")


class Hints(Settings):
    """What the student's layers learn from the teacher's; see `LearnFromLayers`."""

    label = "hints"
    layers: dict[str, str] = Field(
        min_length=1, description='by a student layer the teacher layer; or a pattern with "*", and skip or last'
    )
    match: LayerMatch = Field(
        default="hint", description="how they are compared: hint, attention, patient or similarities"
    )
    weight: float = Field(default=1.0, gt=0, description="of all pairs together, beside the answers")
    regressor: Regressor = Field(
        default="auto", description="a learned layer between them: auto (if shapes differ), always, never"
    )
    token: Literal["all", "first"] = Field(default="all", description="in transformers: all tokens, or the first only")

    def part(self, teacher: Teacher) -> LearnFromLayers:
        """The loss term."""
        return LearnFromLayers(
            teacher, self.layers, self.match, self.weight, regressor=self.regressor, token=self.token
        )


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
    hold: float = Field(
        default=1.0, gt=0, le=1, description="fraction of the steps after which the learning rate stays"
    )
    average: float | None = Field(
        default=None, gt=0, lt=1, description="decay of a moving average that replaces the weights"
    )
    average_epochs: int | None = Field(
        default=None, ge=1, description="the mean of the weights after so many last epochs replaces them (SWA)"
    )
    keep_steps: tuple[int, ...] = Field(default=(), description="steps whose weights are kept, 0 for the initial ones")
    teacher: str | tuple[str, ...] | None = Field(
        default=None,
        description='whom to learn from besides the labels: "baseline", a stage\'s name, a .pj file; or several',
    )
    agree: Agree = Field(
        default="probabilities",
        description="what several teachers say together: mean probabilities, mean logits, or votes",
    )
    match: Match = Field(
        default="soft-targets",
        description="what of its answers is learned: soft-targets, logits, decoupled (DKD), dist, or cosine, similarities",
    )
    temperature: float = Field(
        default=4.0, gt=0, description="how much the teacher's answers are softened; logits never are"
    )
    soft: float = Field(default=0.9, ge=0, le=1, description="weight of the teacher; the labels have 1 - soft")
    last_soft: float | None = Field(
        default=None, ge=0, le=1, description="the same at the last step, linear in between; none: soft all the time"
    )
    hints: Hints | None = Field(default=None, description="what layers learn from the teacher's layers besides")

    @field_validator("teacher")
    @classmethod
    def _somebody(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value == ():
            raise ValueError("it must name somebody, or be left out")
        return value

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of those to learn from."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher or ()

    def schedule(self, epochs: int | None = None) -> Schedule:
        """The training schedule, by default of `epochs` passes."""
        return Schedule(
            epochs=self.epochs if epochs is None else epochs,
            lr=self.lr,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            decay=self.decay,
            warmup=self.warmup,
            hold=self.hold,
            clip_norm=self.clip_norm,
            keep_steps=self.keep_steps,
        )

    def parts(self, bench: Workbench) -> list[Part]:
        """What the network learns from, and the averages where they are asked for.

        Raises: SettingError: hints without a teacher, two averages at once.
        """
        found: list[Part] = []
        if not self.teachers:
            if self.hints is not None:
                raise SettingError(f'{self.where()}: hints need a teacher. Add for example teacher: "{BASELINE}".')
            found.append(LearnFromLabels())
        else:
            teacher, last = self.named_teacher(bench), self.soft if self.last_soft is None else self.last_soft
            found.append(LearnFromTeacher(teacher, self.temperature, self.soft, self.match, last_weight=last))
            if min(self.soft, last) < 1:
                found.append(LearnFromLabels(1 - self.soft, last_weight=1 - last))
            if self.hints is not None:
                found.append(self.hints.part(teacher))
        return [*found, *self.averages()]

    def averages(self) -> list[Part]:
        """The average of the weights that is asked for, if any. Raises: SettingError: two at once."""
        if self.average is not None and self.average_epochs is not None:
            raise SettingError(f"{self.where()}: choose average or average_epochs, not both.")
        if self.average is not None:
            return [AverageWeights(self.average)]
        return [AverageEpochs(self.average_epochs)] if self.average_epochs is not None else []

    def named_teacher(self, bench: Workbench) -> Teacher:
        """Those to learn from, as one."""
        networks = [bench.teacher(name, self.where()) for name in self.teachers]
        return Teacher(*networks, agree=self.agree, temperature=self.temperature, folder=bench.answers_folder)

    def planned_epochs(self) -> int:
        return self.epochs


class PartlyTrainedStage(TrainedStage):
    """Base of stages that can leave layers as they are."""

    freeze: tuple[str, ...] = Field(
        default=(),
        description="layers or blocks that stay as they are to the bit, statistics of norms too: names, or patterns with *",
    )

    def parts(self, bench: Workbench) -> list[Part]:
        found = super().parts(bench)
        return [*found, Freeze(self.freeze)] if self.freeze else found


class Train(PartlyTrainedStage):
    """Plain training. First in a recipe, it makes the baseline."""

    label: ClassVar[str] = "train"
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    keep_steps: tuple[int, ...] = Field(
        default=(0,), description="steps whose weights are kept, 0 for the initial ones"
    )

    def apply(self, bench: Workbench) -> None:
        bench.train(self.schedule(), self.parts(bench))


def described(stage: type[Settings]) -> list[tuple[str, str, Any, str]]:
    """(setting, type, default, description) of a stage, those within a setting too, for `--help` and the documentation."""
    rows = []
    for name, info in stage.model_fields.items():
        default = "needed" if info.is_required() else info.default
        rows.append((name, _spoken(info.annotation), default, info.description or ""))
        for inner in _within(info.annotation):
            rows += [(f"{name}.{key}", *rest) for key, *rest in described(inner)]
    return rows


def _within(kind: Any) -> list[type[Settings]]:
    """The settings that a setting consists of."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [part for part in kinds if isinstance(part, type) and issubclass(part, Settings)]


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
    if isinstance(kind, type) and issubclass(kind, Settings):
        return "settings"
    return getattr(kind, "__name__", str(kind)) if not get_args(kind) else str(kind)
