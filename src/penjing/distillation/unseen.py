"""Classes that a student never sees: it hears of them from its teacher all the same, and a shift of biases brings them forth.

A transfer set without some classes still has the teacher's probabilities of them. What the student then lacks is how often they
occur: their logits are too low, by about the same amount everywhere.

Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 3.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.errors import DataError, SettingError, nearest
from penjing.graph import Network
from penjing.graph.network import MODULE, OUTPUT
from penjing.training import Batch, Stage, Task, Workbench


class WithoutClasses:
    """A loader that leaves out the samples of some classes; batches become smaller, empty ones are left out."""

    def __init__(self, task: Task, classes: Sequence[int]) -> None:
        self.task, self.classes = task, torch.tensor(sorted(classes))

    @property
    def dataset(self) -> Any:
        return getattr(self.task.train, "dataset", None)

    @property
    def sampler(self) -> Any:
        """So that it can be seeded like the loader itself."""
        return self.task.train

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.task.batches(self.task.train):
            if not isinstance(batch.labels, Tensor):
                raise DataError("without: classes can be left out only where the batches have labels.")
            seen = ~torch.isin(batch.labels, self.classes.to(batch.labels.device))
            if bool(seen.any()):
                yield batch.chosen(seen)


def without_classes(task: Task, classes: Iterable[int | str]) -> Task:
    """The task with a training set in which some classes do not occur; validation and test stay.

    Args:
        classes: their numbers, or their names where the task has names.
    Raises: SettingError: no such class.
    """
    numbers = class_numbers(task, classes)

    def read(raw: Any) -> Batch:
        return raw if isinstance(raw, Batch) else task.batch(raw)

    return replace(task, train=WithoutClasses(task, numbers), batch=read)


def class_numbers(task: Task, classes: Iterable[int | str]) -> list[int]:
    """The numbers of classes that are given by number or by name.

    Raises: SettingError: no such class, or none given.
    """
    found = []
    for item in classes:
        if str(item) in task.classes:
            found.append(task.classes.index(str(item)))
        elif isinstance(item, int) and item >= 0 and (not task.classes or item < len(task.classes)):
            found.append(item)
        else:
            known = task.classes or ("numbers from 0 on",)
            raise SettingError(f'classes: there is no class "{item}"; {nearest(str(item), known)}.')
    if not found:
        raise SettingError("classes: at least one class must be named.")
    return sorted(set(found))


def best_shift(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> tuple[float, int]:
    """The number that, added to the logits of some classes, makes most answers right.

    Let S be those classes, m_i = max over S and o_i = max over the others of sample i's logits. It is answered from S where
    the shift exceeds o_i - m_i. So the number of right answers is a step function of the shift with steps there, and its
    highest stair is found exactly; its middle is returned, of several equal ones the one nearest to 0.

    Args:
        logits: (n, classes). labels: (n,).
    Returns: the shift, and how many answers are right with it.
    """
    inside = torch.zeros(logits.shape[1], dtype=torch.bool)
    inside[list(classes)] = True
    logits, labels = logits.double().cpu(), labels.cpu()
    of_s, of_others = logits.masked_fill(~inside, -torch.inf), logits.masked_fill(inside, -torch.inf)
    step = of_others.amax(1) - of_s.amax(1)  # (n,)
    right_in_s = (of_s.argmax(1) == labels).long()
    right_outside = (of_others.argmax(1) == labels).long()
    order = step.argsort()
    edges = step[order]
    gain = (right_in_s - right_outside)[order].cumsum(0)
    counts = torch.cat([torch.zeros(1, dtype=torch.long), gain]) + right_outside.sum()
    low = torch.cat([edges[:1] - 1, edges])
    high = torch.cat([edges, edges[-1:] + 1])
    counts = counts.masked_fill(high - low <= 0, -1)  # between equal steps there is no room
    best = counts == counts.max()
    middles = ((low + high) / 2)[best]
    choice = middles[middles.abs().argmin()]
    nothing = ((low < 0) & (high > 0) & best).any()
    return (0.0 if bool(nothing) else float(choice)), int(counts.max())


def shift_logits(network: Network, classes: Sequence[int], shift: float) -> Network:
    """A copy whose last layer has `shift` added to its biases of some classes; a bias is made where there is none.

    Raises: SettingError: the answer does not come from a linear layer or convolution, or its bias has a representation.
    """
    shifted = copy.deepcopy(network)
    answers = next(node for node in network.nodes if node.op == OUTPUT).inputs
    source = next(node for node in network.nodes if node.name == answers[0])
    while source.op != MODULE and source.inputs and source.op in ("flatten", "reshape"):
        source = next(node for node in network.nodes if node.name == source.inputs[0])
    layer = shifted.get_submodule(source.path) if source.op == MODULE else None
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        raise SettingError(
            "correct-biases: the network must end in a linear layer or a convolution, whose bias is changed."
        )
    if parametrize.is_parametrized(layer, "bias"):
        raise SettingError(
            f"correct-biases: the bias of {source.path} has a representation; correct biases before that."
        )
    with torch.no_grad():
        weight = layer.weight
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().clone()
        bias[list(classes)] += shift
        layer.bias = nn.Parameter(bias)
    return shifted.train(network.training)


class CorrectBiases(Stage):
    """Shift the biases of classes that were rare or missing in training, by what is best on the validation set."""

    label: ClassVar[str] = "correct-biases"
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    classes: tuple[int | str, ...] = Field(
        min_length=1, description="whose biases: numbers or names, all by the same amount"
    )

    def apply(self, bench: Workbench) -> None:
        classes = class_numbers(bench.task, self.classes)

        def measure() -> Any:
            logits, labels = [], []
            bench.network.eval()
            with torch.no_grad():
                for batch in bench.task.batches(bench.task.valid, bench.accelerator.device):
                    logits.append(bench.network.all_answers(*batch.args, **batch.kwargs)[-1].cpu())
                    labels.append(batch.labels.cpu())
            found, targets = torch.cat(logits), torch.cat(labels)
            if max(classes) >= found.shape[1]:
                raise SettingError(
                    f"correct-biases: the network has {found.shape[1]} classes, there is none of number {max(classes)}."
                )
            shift, right = best_shift(found, targets, classes)
            return {
                "shift": shift,
                "right before": int((found.argmax(1) == targets).sum()),
                "right": right,
                "of": len(targets),
            }

        decided: Any = bench.decide("shift", measure)
        bench.network = shift_logits(bench.network, classes, decided["shift"])
        bench.facts |= {"classes": classes, **decided}
