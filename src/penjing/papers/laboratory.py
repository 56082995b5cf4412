"""Where a claim's experiments are made: data, training, and what one arm leaves for the next."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.data import Splits, digits, image_folder, mnist
from penjing.errors import DataError, SettingError, nearest
from penjing.graph import Network, trace
from penjing.measurement.accuracy import accuracy, answer
from penjing.training import Fit, History, Journal, Part, Schedule, Task, Workbench, fit_, new_accelerator
from penjing.training.checkpoint import load_state, save_state
from penjing.training.progress import Reporter, Silent
from penjing.training.seeding import derive_seed, seed_everything

Loader = Callable[[Path | None, dict[str, Any]], Splits]


def _mnist(folder: Path | None, settings: dict[str, Any]) -> Splits:
    return mnist(_needed(folder, "mnist"), **{"augment": False, **settings})


def _cifar(folder: Path | None, settings: dict[str, Any]) -> Splits:
    root = _needed(folder, "cifar10-jpeg")
    found = next((p for p in (root, root / "cifar10-jpeg") if (p / "train").is_dir()), root)
    return image_folder(found, **{"augment": False, "n_valid": 5000, **settings})


def _needed(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise DataError(f"reproduce: the data set {name} is needed; give the folder where it lies with --data.")
    return folder


DATA: dict[str, Loader] = {
    "digits": lambda folder, settings: digits(**settings),
    "mnist": _mnist,
    "cifar10-jpeg": _cifar,
}
"""Data sets by name. The test part is for the figures that are judged, the validation part for every decision."""


class Laboratory:
    """What a claim's `measure` works with, for one seed.

    Attributes:
        seed: of everything random.
        key: the arm under way; names its trainings.
    """

    def __init__(
        self,
        seed: int,
        *,
        folder: Path | None = None,
        data: Path | None = None,
        device: torch.device | None = None,
        precision: str = "no",
        reporter: Reporter | None = None,
    ) -> None:
        self.seed, self.folder, self.data_folder = seed, folder, data
        self.reporter = reporter or Silent()
        self.accelerator = new_accelerator(device, precision)
        self.key = ""
        self._splits: dict[str, Splits] = {}

    def splits(self, name: str, **settings: Any) -> Splits:
        """A data set. Raises: SettingError: there is none of that name. DataError: it is not there."""
        if name not in DATA:
            raise SettingError(f'reproduce: there is no data set "{name}"; {nearest(name, DATA)}.')
        key = f"{name}{sorted(settings.items())}"
        if key not in self._splits:
            self._splits[key] = DATA[name](self.data_folder, settings)
        return self._splits[key]

    def task(self, name: str, **settings: Any) -> Task:
        """A data set as a task; the figures come from its test part."""
        splits = self.splits(name, **settings)
        return Task(splits.train, splits.valid, splits.test)

    def weights(self, name: str) -> Path:
        """A file of given weights, FOLDER/NAME.safetensors or FOLDER/weights/NAME.safetensors.

        Raises: DataError: it is not there.
        """
        file = f"{name}.safetensors"
        root = _needed(self.data_folder, f"of weights {file}")
        found = next((path for path in (root / file, root / "weights" / file) if path.is_file()), None)
        if found is None:
            raise DataError(f"reproduce: {file} is needed; put it into {root} or {root / 'weights'}.")
        return found

    def folder_of(self, name: str) -> Path:
        """The folder NAME of the data, or the data's own. Raises: DataError: none was given."""
        root = _needed(self.data_folder, name)
        return root / name if (root / name).is_dir() else root

    def build(self, make: Callable[[], nn.Module], task: Task, *, name: str = "model") -> Network:
        """A network with weights drawn from the seed, the same in all arms."""
        seed_everything(derive_seed(self.seed, name))
        return trace(make(), task.example().args).to(self.accelerator.device)

    def generator(self, *names: object) -> torch.Generator:
        """Randomness for a place in the experiment."""
        return torch.Generator().manual_seed(derive_seed(self.seed, *names))

    def train(
        self, network: Network, task: Task, schedule: Schedule, parts: Sequence[Part] | None = None, name: str = ""
    ) -> History:
        """Train in place; the order of samples depends on the seed, the arm and the name."""
        return fit_(
            network,
            task,
            schedule,
            parts,
            accelerator=self.accelerator,
            seed=self.seed,
            where=f"{self.key} {name}".strip(),
            reporter=self.reporter,
        )

    def bench(
        self, network: Network, task: Task, teachers: Mapping[str, nn.Module] | None = None, name: str = ""
    ) -> Workbench:
        """For carrying out stages as a recipe does."""
        return Workbench(
            network,
            task,
            key=f"{self.key} {name}".strip(),
            seed=self.seed,
            journal=Journal(None, self.accelerator),
            accelerator=self.accelerator,
            reporter=self.reporter,
            teachers=teachers or {},
            standing={},
        )

    def percent_correct(self, network: Network, task: Task, part: str = "test") -> float:
        """Accuracy on the test part, or another, in percent."""
        found = accuracy(answer(network, task, getattr(task, part)))
        return 100 * found.correct / found.total

    def mean_loss(self, network: Network, task: Task, part: str = "valid", limit: int | None = None) -> float:
        """The mean loss over a part, or its first `limit` batches, in evaluation mode."""
        total, n = 0.0, 0
        was_training = network.training
        network.eval()
        with torch.no_grad():
            for i, batch in enumerate(task.batches(getattr(task, part), self.accelerator.device)):
                if limit is not None and i >= limit:
                    break
                total += float(task.loss(network(*batch.args, **batch.kwargs), batch.labels)) * batch.size
                n += batch.size
        network.train(was_training)
        return total / max(n, 1)

    def leave(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep tensors for later arms of this seed."""
        self._left[name] = dict(state)
        if self.folder is not None:
            save_state(self._path(name), {"state": dict(state)})

    def left(self, name: str) -> dict[str, Any]:
        """What an earlier arm left. Raises: SettingError: nothing of that name."""
        if name not in self._left:
            path = self._path(name) if self.folder is not None else None
            if path is None or not path.exists():
                raise SettingError(f'reproduce: the arm that leaves "{name}" has not been run for seed {self.seed}.')
            self._left[name] = load_state(path)["state"]
        return self._left[name]

    @cached_property
    def _left(self) -> dict[str, dict[str, Any]]:
        return {}

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / "left" / f"{self.seed}-{name}.safetensors"


class Watch(Part):
    """Looks at the validation set every so many steps; the network goes on as if nobody had.

    Attributes:
        steps, losses: where it looked and the mean loss found there.
    """

    def __init__(self, laboratory: Laboratory, every: int) -> None:
        self.laboratory, self.every = laboratory, every
        self.steps: list[int] = []
        self.losses: list[float] = []

    def after_step(self, fit: Fit) -> None:
        if fit.step % self.every == 0:
            self.steps.append(fit.step)
            self.losses.append(self.laboratory.mean_loss(fit.network, fit.task))

    def earliest_best(self) -> int:
        """The step at which the validation loss was least: where early stopping would have stopped."""
        return self.steps[min(range(len(self.losses)), key=self.losses.__getitem__)]

    def state(self) -> dict[str, object]:
        return {"steps": self.steps, "losses": self.losses}

    def load_state(self, state: dict[str, object]) -> None:
        self.steps, self.losses = list(state["steps"]), list(state["losses"])  # type: ignore[call-overload]


def cloned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the CPU that nothing changes any more."""
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
