"""The one training loop. Everything that is special about a technique is a `Part`."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from penjing.errors import SettingError, TrainingError, nearest
from penjing.graph import ExitOutputs, Network
from penjing.graph.features import features
from penjing.graph.network import module_at
from penjing.representation import Mask, MasksInPlace
from penjing.settings import Settings
from penjing.training.checkpoint import load_state, save_state
from penjing.training.part import Answers, LearnFromLabels, Part
from penjing.training.progress import Reporter, Silent
from penjing.training.seeding import derive_seed, seed_everything, seed_loader
from penjing.training.task import Batch, Task, explained

SAVE_EVERY_SECONDS = 10.0
_SAID: WeakKeyDictionary[Reporter, set[str]] = WeakKeyDictionary()


class Schedule(Settings):
    """How long and how fast to train.

    The learning rate at progress p (0 to 1) of all steps:
    rises linearly to `lr` during the first `warmup`, then `constant`, or `cosine`: lr * (1 + cos(pi p')) / 2,
    where p' runs from 0 to 1 over the rest. From p = `hold` on it stays what it was there.
    """

    label = "schedule"
    epochs: int = Field(default=1, ge=0, description="passes over the training set")
    lr: float = Field(default=1e-3, gt=0, description="largest learning rate")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw, or sgd with Nesterov momentum 0.9")
    weight_decay: float = Field(default=0.0, ge=0, description="as the optimizer understands it")
    decay: Literal["cosine", "constant"] = Field(default="cosine", description="how the learning rate falls")
    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="fraction of all steps in which the learning rate rises"
    )
    hold: float = Field(
        default=1.0, gt=0, le=1, description="fraction of all steps after which the learning rate stays"
    )
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of the gradient, None for no limit")
    keep_steps: tuple[int, ...] = Field(
        default=(), description="steps after which weights are kept, 0 for before the first"
    )

    @field_validator("keep_steps")
    @classmethod
    def _steps(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(step < 0 for step in value):
            raise ValueError("steps must be at least 0")
        return value

    def rate(self, progress: float) -> float:
        """The learning rate when `progress` of all steps, 0 to 1, is done."""
        progress = min(progress, self.hold)
        if progress < self.warmup:
            return self.lr * max(progress / self.warmup, 1e-2)
        if self.decay == "constant":
            return self.lr
        rest = (progress - self.warmup) / (1 - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


@dataclass
class History:
    """What a training did.

    Attributes:
        losses: mean loss of each epoch.
        seconds: of each epoch.
        weights: the kept weights, by step.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    weights: dict[int, dict[str, Tensor]] = field(default_factory=dict)


class Fit:
    """A training under way, as parts see it.

    Attributes:
        network: the network being trained, unwrapped.
        task, schedule, device: what they say.
        optimizer: the torch optimizer, wrapped by Accelerate.
        epoch, step: how many are finished; total_steps: how many there will be.
        history: losses so far and kept weights.
        features: what the layers that a part asked for gave in the last `forward`, by name.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        schedule: Schedule,
        parts: Sequence[Part],
        accelerator: Accelerator,
        where: str,
        seed: int = 0,
        reporter: Reporter | None = None,
    ) -> None:
        self.network, self.task, self.schedule = network, task, schedule
        self.parts = list(parts)
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.where = where
        self.epoch = self.step = 0
        self.total_steps = 1
        self.history = History()
        self.groups = _parameter_groups(network, schedule)
        self.optimizer: Any = None
        self.model: nn.Module = network
        self.masks = MasksInPlace(network)
        self.seed = seed
        self.features: dict[str, Tensor] = {}
        self._reporter = reporter or Silent()
        self._names: list[str] = []
        self._learners: list[Tensor] = []

    def say(self, text: str) -> None:
        """Tell the user something that is worth knowing once in a run."""
        said = _SAID.setdefault(self._reporter, set())
        if text not in said:
            said.add(text)
            self._reporter.say(f"  [yellow]note[/yellow] {text}")

    def look_at(self, names: Iterable[str]) -> None:
        """Ask for what layers of the network give: from now on `features` holds it after every `forward`, by name."""
        self._names = list(dict.fromkeys([*self._names, *names]))

    def let_learn(self, learners: nn.Module | None) -> None:
        """Give the optimizer a part's own modules; before it is made."""
        if learners is None:
            return
        learners.to(self.device).train()
        found = [p for p in learners.parameters() if p.requires_grad]
        self._learners += found
        self.groups.append({"params": found, "weight_decay": self.schedule.weight_decay, "scale": 1.0})

    def forward(self, batch: Batch) -> Answers:
        """The answers of the network, wrapped for several processes and mixed precision."""
        batch = self.laid_out(batch)
        with explained(self.network, batch), self.accelerator.autocast(), contextlib.ExitStack() as stack:
            if self._names:
                self.features = stack.enter_context(features(self.network, self._names, "hints: student"))
            answers = self.model(*batch.args, **batch.kwargs)
        return ExitOutputs(a.float() for a in answers) if isinstance(answers, (tuple, ExitOutputs)) else answers.float()

    def laid_out(self, batch: Batch) -> Batch:
        """The batch in the memory layout that convolutions are fastest in: channels last for images."""
        args = tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in batch.args)
        return Batch(args, batch.kwargs, batch.labels, batch.keys)

    def loss(self, batch: Batch, answers: Answers) -> Tensor:
        """The sum of the terms of all parts.

        Raises: SettingError: no part has a term.
        """
        terms = [term for part in self.parts if (term := part.loss(self, batch, answers)) is not None]
        if not terms:
            raise SettingError(f"{self.where}: nothing to learn from; give labels, a teacher, or a part with a loss.")
        return torch.stack(terms).sum()

    def update(self, loss: Tensor) -> float:
        """One optimizer step down the gradient of `loss`. Returns its value.

        Raises: TrainingError: the loss is not finite; the weights are left as they were before the step.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.where}: the loss became {value} in epoch {self.epoch + 1}, step {self.step + 1}. "
                f"Try a smaller lr (it is {self.schedule.lr:g}), clip_norm: 1, or look for infinite values in the data. "
                "What was finished before this stage is safe."
            )
        self.optimizer.zero_grad()
        if self.accelerator.num_processes == 1 and self.accelerator.mixed_precision == "no":
            loss.backward()  # Accelerate's does the same, and looks for packages on disk at every step
        else:
            self.accelerator.backward(loss)
            for parameter in self._learners:
                if self.accelerator.num_processes > 1 and parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        if self.schedule.clip_norm is not None:
            self.masks.mask_gradients_()
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.schedule.clip_norm)
        self.optimizer.step()
        self.masks.enforce_()
        return value

    def _one_step(self, batch: Batch) -> float:
        done = [value for part in self.parts if (value := part.step(self, batch)) is not None]
        if len(done) > 1:
            raise SettingError(f"{self.where}: two parts want to do the whole step; only one may.")
        value = done[0] if done else self.update(self.loss(batch, self.forward(batch)))
        self.step += 1
        for part in self.parts:
            part.after_step(self)
        return value

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "parts": [part.state() for part in self.parts],
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.history.losses,
            "seconds": self.history.seconds,
            "weights": self.history.weights,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state(own)
        self.epoch, self.step = state["epoch"], state["step"]
        self.history = History(state["losses"], state["seconds"], state["weights"])


def fit_(
    network: Network,
    task: Task,
    schedule: Schedule,
    parts: Sequence[Part] | None = None,
    *,
    accelerator: Accelerator | None = None,
    seed: int = 0,
    where: str = "train",
    keep: Path | None = None,
    reporter: Reporter | None = None,
) -> History:
    """Train a network in place.

    Args:
        parts: what to learn from and what else takes part; None: from the labels.
        seed, where: randomness is drawn from both, epoch by epoch; `where` also names the training in messages.
        keep: path without ending under which the state is kept, see `training.journal`; a finished training is only read.
        reporter: where progress goes.
    Returns: losses and kept weights; the network is left in evaluation mode.
    Raises: TrainingError: NaN or infinite loss. DataError: the loader or the labels do not fit.
    """
    accelerator = accelerator or new_accelerator()
    reporter = reporter or Silent()
    parts = [LearnFromLabels()] if parts is None else list(parts)
    finished = keep.with_name(keep.name + ".safetensors") if keep else None
    unfinished = keep.with_name(keep.name + ".unfinished.safetensors") if keep else None
    if finished is not None and finished.exists():
        state = load_state(finished)
        network.load_state_dict(state["network"])
        network.eval()
        for _ in range(schedule.epochs):
            reporter.epoch_done()
        seed_everything(derive_seed(seed, where, "end"))
        return History(state["losses"], state["seconds"], state["weights"])
    fit = Fit(network, task, schedule, parts, accelerator, where, seed, reporter)
    _train_(fit, unfinished, seed, reporter)
    network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    seed_everything(derive_seed(seed, where, "end"))
    if finished is not None and unfinished is not None:
        if accelerator.is_main_process:
            history = {"losses": fit.history.losses, "seconds": fit.history.seconds, "weights": fit.history.weights}
            save_state(finished, {"network": network.state_dict(), **history})
            unfinished.unlink(missing_ok=True)
        accelerator.wait_for_everyone()
    return fit.history


def _train_(fit: Fit, unfinished: Path | None, seed: int, reporter: Reporter) -> None:
    accelerator, task, schedule = fit.accelerator, fit.task, fit.schedule
    fit.network.to(fit.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    loader: Any = task.train
    if accelerator.num_processes > 1 and isinstance(loader, DataLoader):
        loader = accelerator.prepare_data_loader(loader)
    seed_everything(derive_seed(seed, fit.where, "learners"))
    for part in fit.parts:
        fit.let_learn(part.learners(fit))
    optimizer = _optimizer(schedule, fit.groups)
    fit.model, fit.optimizer = accelerator.prepare(fit.network, optimizer)
    steps_per_epoch = _length(loader, task)
    fit.total_steps = max(steps_per_epoch * schedule.epochs, 1)
    try:
        seed_everything(derive_seed(seed, fit.where, "start"))
        for part in fit.parts:
            part.start(fit)
        if unfinished is not None and unfinished.exists():
            fit.load(load_state(unfinished))
            for _ in range(fit.epoch):
                reporter.epoch_done()
        elif 0 in schedule.keep_steps:
            fit.history.weights[0] = _snapshot(fit.network)
        saved = time.monotonic()
        with reporter.bar(fit.where, fit.total_steps) as bar:
            bar.advance(fit.step)
            while fit.epoch < schedule.epochs:
                _epoch_(fit, loader, derive_seed(seed, fit.where, fit.epoch), bar.advance)
                reporter.epoch_done()
                late = time.monotonic() - saved > SAVE_EVERY_SECONDS
                if unfinished is not None and late and fit.epoch < schedule.epochs and accelerator.is_main_process:
                    save_state(unfinished, fit.state())
                    saved = time.monotonic()
        seed_everything(derive_seed(seed, fit.where, "finish"))
        seed_loader(loader, derive_seed(seed, fit.where, "finish"))
        for part in fit.parts:
            part.finish(fit)
        _agree(fit.network, accelerator)
    finally:
        fit.masks.release()
        accelerator.unwrap_model(fit.model, keep_fp32_wrapper=False)
        accelerator.free_memory()


def _epoch_(fit: Fit, loader: Any, seed: int, advance: Callable[[int, str], None]) -> None:
    begun = time.monotonic()
    seed_everything(seed)
    seed_loader(loader, seed)
    fit.network.train()
    for part in fit.parts:
        part.epoch_start(fit)
    if not any(part.reads_removed for part in fit.parts):
        fit.masks.find()
    total, n = 0.0, 0
    for batch in fit.task.batches(loader, fit.device):
        for group in fit.optimizer.param_groups:
            group["lr"] = fit.schedule.rate(fit.step / fit.total_steps) * group["scale"]
        total += fit._one_step(batch) * batch.size
        n += batch.size
        if fit.step in fit.schedule.keep_steps:
            fit.history.weights[fit.step] = _snapshot(fit.network)
        advance(1, f"epoch {fit.epoch + 1}/{fit.schedule.epochs}  loss {total / n:.4f}")
    for part in fit.parts:
        part.epoch_end(fit)
    fit.epoch += 1
    fit.history.losses.append(total / n)
    fit.history.seconds.append(round(time.monotonic() - begun, 3))


def _length(loader: Any, task: Task) -> int:
    try:
        return len(loader)
    except TypeError:
        return sum(1 for _ in task.batches(loader))


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _agree(network: nn.Module, accelerator: Accelerator) -> None:
    """With several processes, make the statistics that each kept by itself those of the first."""
    if accelerator.num_processes > 1:
        for tensor in network.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def _parameter_groups(network: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """Weights decay, masked ones too; biases and norms do not. Codebooks learn at a rate in proportion to their size."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    groups: list[dict[str, Any]] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if ".parametrizations." in name and not _is_masked_weight(network, name):
            size = float(parameter.detach().square().mean().sqrt())
            groups.append({"params": [parameter], "weight_decay": 0.0, "scale": size or 1.0})
        else:
            (decayed if parameter.dim() > 1 else free).append(parameter)
    groups.append({"params": decayed, "weight_decay": schedule.weight_decay, "scale": 1.0})
    groups.append({"params": free, "weight_decay": 0.0, "scale": 1.0})
    return [group for group in groups if group["params"]]


def _is_masked_weight(network: nn.Module, name: str) -> bool:
    """Whether a parameter is a weight under masks and nothing else: it learns as it would without them."""
    stack, _, own = name.rpartition(".")
    parts = module_at(network, stack).children() if own == "original" else ()
    return own == "original" and all(isinstance(part, Mask) for part in parts)


def _optimizer(schedule: Schedule, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if not groups:
        raise TrainingError("train: the network has no parameters to train.")
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=schedule.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=schedule.lr)


def new_accelerator(device: torch.device | None = None, precision: str = "no") -> Accelerator:
    """Accelerate's place to compute: the device, or the best there is; several processes where torchrun started them."""
    on_cpu = device.type == "cpu" if device is not None else not torch.accelerator.is_available()
    return Accelerator(cpu=on_cpu, mixed_precision=precision)  # it looks for other processes on CPUs only when told cpu


def device_named(name: str | None) -> torch.device | None:
    """A device that is there.

    Raises: SettingError: no such device on this machine, with the ones that are there.
    """
    if name is None:
        return None
    known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    known += ["cuda"] if torch.cuda.is_available() else []
    known += ["mps"] if torch.backends.mps.is_available() else []
    if name not in known:
        raise SettingError(f'device: there is no "{name}" on this machine; {nearest(name, known)}.')
    return torch.device(name)
