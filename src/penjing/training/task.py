"""What the network is for: its data, its loss, and how good its answers are."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.data.versions import Versioned
from penjing.errors import DataError

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        args, kwargs: what the network is called with, tensors of shape (batch, ...).
        labels: what the loss and the metric compare with; None where there are none.
        keys: (batch, 2), int64: each sample's number in its data set and its version, where the data set tells, see
            `data.Versions`.
    """

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Tensor]
    labels: Any = None
    keys: Tensor | None = None

    @property
    def size(self) -> int:
        """The number of samples."""
        first = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return int(first.shape[0])

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        labels = self.labels.to(device) if isinstance(self.labels, Tensor) else self.labels
        return Batch(
            tuple(x.to(device) for x in self.args),
            {name: x.to(device) for name, x in self.kwargs.items()},
            labels,
            self.keys,
        )

    def chosen(self, which: Tensor) -> "Batch":
        """Some of the samples.

        Args:
            which: indices, (k,), or a mask, (batch,).
        """
        labels = self.labels
        if isinstance(labels, Tensor):
            labels = labels[which]
        elif isinstance(labels, (list, tuple)):
            places = which.nonzero().flatten() if which.dtype == torch.bool else which
            labels = [labels[i] for i in places.tolist()]
        return Batch(
            tuple(x[which] for x in self.args),
            {name: x[which] for name, x in self.kwargs.items()},
            labels,
            None if self.keys is None else self.keys[which.cpu()],
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
        inputs = {k: v for k, v in raw.items() if k != label_key}
        return Batch((), _tensors(inputs), raw[label_key] if label_key else None)
    if isinstance(raw, (tuple, list)) and len(raw) in (1, 2):
        inputs, labels = raw[0], raw[1] if len(raw) == 2 else None
        if isinstance(inputs, Mapping):
            return Batch((), _tensors(inputs), labels)
        args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        if all(isinstance(x, Tensor) for x in args):
            return Batch(args, {}, labels)
        kinds = ", ".join(sorted({type(x).__name__ for x in args if not isinstance(x, Tensor)}))
        raise DataError(
            f"task: the loader yields inputs that are not tensors but {kinds}; wrap them with torch.as_tensor."
        )
    shape = f"a {type(raw).__name__} of {len(raw)}" if isinstance(raw, (tuple, list)) else f"a {type(raw).__name__}"
    raise DataError(
        f"task: the loader yields {shape}; it must yield a tensor, (inputs, labels), or a dict with labels. "
        "Give Task(batch=...) a function that turns one into a penjing.Batch."
    )


def _tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            raise DataError(
                f'task: the input "{name}" is a {type(value).__name__}, it must be a tensor. Give Task(batch=...) a function '
                "that picks what the network is called with."
            )
    if not inputs:
        raise DataError("task: the loader yields a dict without inputs.")
    return dict(inputs)


@contextmanager
def explained(network: nn.Module, batch: Batch) -> Iterator[None]:
    """While the network answers the batch: what torch says of inputs that do not fit becomes a `DataError`."""
    try:
        yield
    except RuntimeError as error:
        expected = sorted(getattr(network, "input_shapes", ()), key=str)
        inputs = [*batch.args, *batch.kwargs.values()]
        given = sorted((tuple(x.shape[1:]) for x in inputs), key=str)
        dtype = next((p.dtype for p in network.parameters()), torch.float32)
        if not expected or (given == expected and all(x.dtype == dtype for x in inputs)):
            raise
        raise DataError(
            f"task: a batch does not fit the network. Its samples have {_shapes(given)} of "
            f"{', '.join(sorted({str(x.dtype) for x in inputs}))}, the network takes {_shapes(expected)} of {dtype}. "
            f"Check what the loader yields. (torch: {str(error).strip().splitlines()[0]})"
        ) from error


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "one number" for shape in shapes)


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
    return (answers.argmax(-1) == _class_labels(answers, labels, "accuracy")).double()


ACCURACY = Metric("accuracy", correct)


def classification_loss(answers: Tensor, labels: Any) -> Tensor:
    """Mean cross entropy, (n, classes) against (n,), with labels checked.

    Raises: DataError: labels missing, of the wrong shape, or outside [0, classes).
    """
    return F.cross_entropy(answers, _class_labels(answers, labels, "the loss"))


def _class_labels(answers: Tensor, labels: Any, who: str) -> Tensor:
    if labels is None:
        raise DataError(
            f"task: the batch has no labels, and {who} needs them. Give labels"
            + (
                ", or learn from a teacher only (soft: 1)."
                if who == "the loss"
                else ", or Task(metric=...) without them."
            )
        )
    if not isinstance(labels, Tensor):
        raise DataError(
            f"task: labels must be a tensor, got a {type(labels).__name__}. Wrap them with torch.as_tensor."
        )
    if answers.dim() != 2:
        raise DataError(
            f"task: classification needs answers of shape (batch, classes), the network gives {tuple(answers.shape)}. "
            "For anything else give Task(loss=..., metric=...)."
        )
    if labels.dim() != 1 or len(labels) != len(answers) or labels.is_floating_point():
        raise DataError(
            f"task: labels must be whole numbers of shape ({len(answers)},), got {labels.dtype} of {tuple(labels.shape)}. "
            "For anything but classification give Task(loss=..., metric=...)."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= answers.shape[-1]:
        raise DataError(
            f"task: labels must be in [0, {answers.shape[-1]}), the network's number of classes, got {low} to {high}."
        )
    return labels.long()


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

    def __post_init__(self) -> None:
        for name in ("train", "valid", "test"):
            loader = getattr(self, name)
            if not isinstance(loader, Iterable) and not (name == "test" and loader is None):
                raise DataError(f"task: {name} must be a loader of batches, got a {type(loader).__name__}.")

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
            batch = self.batch(raw.sample if isinstance(raw, Versioned) else raw)
            if not isinstance(batch, Batch):
                raise DataError(f"task: batch= must return a penjing.Batch, it returned a {type(batch).__name__}.")
            if isinstance(raw, Versioned):
                batch = replace(batch, keys=torch.stack([torch.as_tensor(raw.index), torch.as_tensor(raw.version)], 1))
            yield batch if device is None else batch.to(device)
        if empty:
            raise DataError(
                "task: a loader yields no batches. Check the data set and drop_last. It is gone through several times: "
                "give a DataLoader or a list, not a generator."
            )

    def example(self) -> Batch:
        """The first two samples of the validation set, for tracing."""
        first = next(self.batches(self.valid))
        return Batch(
            tuple(x[:2] for x in first.args),
            {name: x[:2] for name, x in first.kwargs.items()},
            first.labels[:2] if isinstance(first.labels, (Tensor, list, tuple)) else first.labels,
        )
