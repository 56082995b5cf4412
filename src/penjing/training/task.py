"""What the network is for: its data, its loss, and how good its answers are."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.errors import DataError

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        args, kwargs: what the network is called with, tensors of shape (batch, ...).
        labels: what the loss and the metric compare with; None where there are none.
    """

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Tensor]
    labels: Any = None

    @property
    def size(self) -> int:
        """The number of samples."""
        first = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return int(first.shape[0])

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        labels = self.labels.to(device) if isinstance(self.labels, Tensor) else self.labels
        return Batch(
            tuple(x.to(device) for x in self.args), {name: x.to(device) for name, x in self.kwargs.items()}, labels
        )


def read_batch(raw: Any) -> Batch:
    """What a loader yields, as a `Batch`.

    Understood are: a tensor (no labels); (inputs,), (inputs, labels), where inputs is a tensor, a tuple of tensors or a
    dict of tensors; and a dict of tensors in which labels, label, targets, target or y are the labels.
    Raises: DataError: anything else.
    """
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, Tensor):
        return Batch((raw,), {})
    if isinstance(raw, Mapping):
        label_key = next((key for key in _LABEL_KEYS if key in raw), None)
        return Batch((), {k: v for k, v in raw.items() if k != label_key}, raw[label_key] if label_key else None)
    if isinstance(raw, (tuple, list)) and len(raw) in (1, 2):
        inputs, labels = raw[0], raw[1] if len(raw) == 2 else None
        if isinstance(inputs, Mapping):
            return Batch((), dict(inputs), labels)
        args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        if all(isinstance(x, Tensor) for x in args):
            return Batch(args, {}, labels)
    shape = f"a {type(raw).__name__} of {len(raw)}" if isinstance(raw, (tuple, list)) else f"a {type(raw).__name__}"
    raise DataError(
        f"task: the loader yields {shape}; it must yield a tensor, (inputs, labels), or a dict with labels. "
        "Give Task(batch=...) a function that turns one into a penjing.Batch."
    )


@dataclass(frozen=True)
class Metric:
    """How good answers are.

    Attributes:
        name: for tables.
        score: takes all answers and all labels of a set; returns one number a sample, (n,), whose mean is the metric,
            or a single number for the set.
        higher_is_better: False for errors and perplexities.
    """

    name: str
    score: Callable[[Tensor, Any], Tensor]
    higher_is_better: bool = True


def correct(answers: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest logit is the label's, else 0; (n,) from (n, classes) and (n,)."""
    return (answers.argmax(-1) == labels).double()


ACCURACY = Metric("accuracy", correct)


def classification_loss(answers: Tensor, labels: Any) -> Tensor:
    """Mean cross entropy, (n, classes) against (n,), with labels checked.

    Raises: DataError: labels missing, of the wrong shape, or outside [0, classes).
    """
    if not isinstance(labels, Tensor):
        raise DataError(
            "task: the batch has no labels, and the loss needs them. Give labels, or learn from a teacher only."
        )
    if labels.dim() != 1 or len(labels) != len(answers) or labels.is_floating_point():
        raise DataError(
            f"task: labels must be whole numbers of shape ({len(answers)},), got {labels.dtype} of {tuple(labels.shape)}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= answers.shape[-1]:
        raise DataError(
            f"task: labels must be in [0, {answers.shape[-1]}), the network's number of classes, got {low} to {high}."
        )
    return F.cross_entropy(answers, labels)


@dataclass(frozen=True)
class Task:
    """Data, loss and metric; classification unless told otherwise.

    Attributes:
        train, valid: loaders, iterated anew each epoch. Decisions are made on `valid`.
        test: read once, at the end; without it the report says so.
        loss: (answers, labels) -> a mean over the batch.
        metric: see `Metric`.
        batch: turns what a loader yields into a `Batch`.
        classes: names of the classes, for reports.
    """

    train: Iterable[Any]
    valid: Iterable[Any]
    test: Iterable[Any] | None = None
    loss: Callable[[Tensor, Any], Tensor] = classification_loss
    metric: Metric = ACCURACY
    batch: Callable[[Any], Batch] = read_batch
    classes: tuple[str, ...] = field(default=())

    @property
    def is_classification(self) -> bool:
        """Whether answers are scores of classes, so that accuracy, exits and soft targets make sense."""
        return self.metric is ACCURACY

    def batches(self, loader: Iterable[Any], device: torch.device | None = None) -> Iterator[Batch]:
        """The batches of a loader.

        Raises: DataError: the loader yields nothing, or something that is not a batch.
        """
        empty = True
        for raw in loader:
            empty = False
            batch = self.batch(raw)
            yield batch if device is None else batch.to(device)
        if empty:
            raise DataError("task: a loader yields no batches. Check the data set and drop_last.")

    def example(self) -> Batch:
        """The first two samples of the validation set, for tracing."""
        first = next(self.batches(self.valid))
        return Batch(
            tuple(x[:2] for x in first.args),
            {name: x[:2] for name, x in first.kwargs.items()},
            first.labels[:2] if first.labels is not None else None,
        )
