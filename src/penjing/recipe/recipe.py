"""A recipe: data, a model, stages and a budget, as data. YAML, a Python list and the command line are spellings of it.

name: mnist
data: {name: mnist, n_valid: 5000}
model: penjing.models:plain_cnn
stages:
  - train: {epochs: 8}
  - separable-convs
  - distill: {temperature: 3, epochs: 8}
budget: {file: 4 kB, drop: 0.5 pp}
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator

from penjing import architecture, data, distillation, dynamic, pruning, quantization
from penjing.artifact import Speed
from penjing.errors import SettingError, nearest
from penjing.recipe.budget import Budget
from penjing.settings import Settings
from penjing.tasks import sentences
from penjing.training import BASELINE, Stage, Task, Train, called, import_function
from penjing.training.stage import is_file

NAME_PATTERN = r"^[\w.-]+$"

STAGES: dict[str, type[Stage]] = {
    Train.label: Train,
    **architecture.STAGES,
    **distillation.STAGES,
    **pruning.STAGES,
    **quantization.STAGES,
    **dynamic.STAGES,
}
"""Every stage by its word in a recipe."""

DATA: dict[str, Callable[..., data.Splits | Task]] = {
    "digits": data.digits,
    "mnist": data.mnist,
    "image-folder": data.image_folder,
    "hub": data.hub,
    "sentences": sentences,
}
"""Every data set by its word in a recipe; `package.module:function` works too."""


def read_stage(item: Any, position: int = 0) -> Stage:
    """A stage from a stage, "its-name", or {its-name: {setting: value}}.

    Raises: SettingError: an unknown stage, with the nearest known one, or settings that cannot work.
    """
    where = f"recipe: stage {position + 1}"
    if isinstance(item, Stage):
        return item
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, Mapping) or len(item) != 1:
        raise SettingError(
            f"{where}: must be a name, or a name with settings, got {item!r}. Write for example - distill: {{epochs: 3}}"
        )
    ((name, settings),) = item.items()
    if not isinstance(name, str) or name not in STAGES:
        raise SettingError(f'{where}: there is no stage "{name}"; {nearest(str(name), STAGES)}.')
    if settings is not None and not isinstance(settings, Mapping):
        raise SettingError(f"{where}: the settings of {name} must be a mapping, got {settings!r}.")
    return STAGES[name](**_with_names(settings or {}))


def write_stage(stage: Stage) -> dict[str, Any]:
    """A stage as a recipe has it; settings that have their default are left out."""
    return {type(stage).label: stage.model_dump(mode="json", exclude_defaults=True)}


def check_teachers(stages: Sequence[Stage]) -> None:
    """Every stage's teacher must be there when its turn comes, and no stage may take the baseline's name.

    Raises: SettingError: it is not, with the names there are.
    """
    known = set() if isinstance(stages[0], Train) else {BASELINE}
    for position, stage in enumerate(stages):
        where = f"recipe: stage {position + 1}: {type(stage).label}"
        for teacher in getattr(stage, "teachers", ()):
            if teacher not in known and not is_file(teacher):
                raise SettingError(f'{where}: there is no teacher "{teacher}" before it; {nearest(teacher, known)}.')
        if stage.name == BASELINE:
            raise SettingError(f'{where}: the name "{BASELINE}" is taken by the network that the recipe starts from.')
        known |= {stage.name or type(stage).label} | ({BASELINE} if isinstance(stage, Train) else set())


class Recipe(Settings):
    """A whole run as data. See the module."""

    label = "recipe"
    name: str = Field(default="run", pattern=NAME_PATTERN, description="what the artifact is called")
    data: dict[str, Any] = Field(description="a data set's name, or {name: ..., settings}")
    model: dict[str, Any] = Field(
        description="package.module:function or a .pj file, or {function: ..., weights: FILE.safetensors, settings}"
    )
    stages: tuple[Any, ...] = Field(min_length=1, description="in order, see `penjing stages`")
    budget: Budget | None = Field(default=None, description="limits")
    speed: Speed = Field(default="small", description="of reading the artifact: small, or fast, some 10 % larger")
    threads: int | None = Field(default=None, ge=1, description="for training; small networks are fastest with 1")

    @field_validator("data", mode="before")
    @classmethod
    def _data(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: Any) -> Any:
        return {"function": value} if isinstance(value, str) else value

    @field_validator("stages", mode="before")
    @classmethod
    def _stages(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise SettingError(f"recipe: stages must be a list, got {value!r}.")
        stages = tuple(read_stage(item, position) for position, item in enumerate(value))
        if stages:
            check_teachers(stages)
        return stages

    @field_validator("budget", mode="before")
    @classmethod
    def _budget(cls, value: Any) -> Any:
        return Budget(**_with_names(value)) if isinstance(value, Mapping) else value

    def to_data(self) -> dict[str, Any]:
        """The recipe as data again; `Recipe(**recipe.to_data())` is the same recipe."""
        budget = self.budget.model_dump(exclude_none=True) if self.budget else None
        stages = [write_stage(stage) for stage in self.stages]
        content = {"name": self.name, "data": self.data, "model": self.model, "stages": stages}
        if budget:
            content["budget"] = budget
        if self.speed != "small":
            content["speed"] = self.speed
        return content | ({"threads": self.threads} if self.threads else {})

    def to_yaml(self) -> str:
        """The recipe as YAML."""
        return yaml.safe_dump(self.to_data(), sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from a YAML file.

    Raises: SettingError: no such file, not YAML, or settings that cannot work.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: the recipe cannot be read ({error}).") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingError(f"{path}: the recipe is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise SettingError(f"{path}: a recipe must have the keys {', '.join(Recipe.model_fields)}.")
    return Recipe(**_with_names(content))


def _with_names(settings: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in settings.items()}


def load_task(settings: Mapping[str, Any], folder: str | Path | None = None) -> Task:
    """The task of a recipe's `data`: one of `DATA`, or package.module:function that returns `Splits` or a `Task`.

    Args:
        folder: where the data lie, for sets that need to know.
    Raises: SettingError: no such data set or setting. DataError: the data are not there.
    """
    rest = {key: value for key, value in settings.items() if key != "name"}
    name = str(settings.get("name", ""))
    function = DATA[name] if name in DATA else import_function(name, "data", DATA)
    takes = inspect.signature(function).parameters
    if "folder" in takes:
        if folder is None and "folder" not in rest:
            raise SettingError(f"data: {name} needs the folder where the data lie. Give it with --data FOLDER.")
        rest = {**rest, "folder": folder if folder is not None else rest["folder"]}
    found = called(function, rest, f"data: {name}")
    if isinstance(found, Task):
        return found
    if not isinstance(found, data.Splits):
        raise SettingError(f"data: {name} must return penjing.Task or penjing.data.Splits, got {type(found).__name__}.")
    return Task(found.train, found.valid, found.test, classes=found.classes)


def all_stages() -> Sequence[type[Stage]]:
    """Every stage, in the order of the families."""
    return list(STAGES.values())
