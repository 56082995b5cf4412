"""How good a network's answers are, sample by sample, and against another network's on the same samples."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penjing.errors import DataError
from penjing.graph import Network
from penjing.measurement.intervals import mean_interval, paired_drop_interval, wilson_interval
from penjing.measurement.record import Accuracy, Drop, MetricValue
from penjing.training.task import ACCURACY, Metric, Task, explained

_RESAMPLES = 500


@dataclass(frozen=True)
class Answers:
    """A network's answers to a set.

    Attributes:
        logits: (n, ...), as the network answers by itself, float32 on the CPU.
        labels: (n, ...), or a list of n where the batches carry lists; None where there are none.
        left_at: (n,), at which exit each sample left; None for networks without exits and gates.
        at_exits: the answers of every exit to every sample, final one last; None for networks without exits.
        opened: by gate, (n,), whose gate was open.
        names: of the answers in `at_exits`, such as "exit 0" or "width 0.5".
    """

    logits: Tensor
    labels: Any
    left_at: Tensor | None = None
    at_exits: tuple[Tensor, ...] | None = None
    opened: Mapping[str, Tensor] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(self.logits)


def answer(network: nn.Module, task: Task, loader: Iterable[Any], *, exits: bool = True) -> Answers:
    """Run a network over a set, in evaluation mode, on the device it is on. Its mode is left as it was."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    dynamic = network if isinstance(network, Network) and exits and (network.exits or network.gates) else None
    training = network.training
    network.eval()
    logits, labels, ways, all_exits = [], [], [], []
    try:
        with torch.no_grad():
            for batch in task.batches(loader, device):
                with explained(network, batch):
                    if dynamic is not None:
                        way = dynamic.route(*batch.args, **batch.kwargs)
                        out = way.answers
                        ways.append((way.left_at.cpu(), {gate: who.cpu() for gate, who in way.opened.items()}))
                        if dynamic.exits:
                            every = dynamic.all_answers(*batch.args, **batch.kwargs)
                            all_exits.append([a.float().cpu() for a in every])
                    else:
                        out = network(*batch.args, **batch.kwargs)
                logits.append(out.float().cpu())
                labels.append(batch.labels.cpu() if isinstance(batch.labels, Tensor) else batch.labels)
    finally:
        network.train(training)
    return Answers(
        torch.cat(logits),
        _joined(labels),
        torch.cat([left_at for left_at, _ in ways]) if ways else None,
        tuple(torch.cat(parts) for parts in zip(*all_exits, strict=True)) if all_exits else None,
        _opened(ways),
        tuple(dynamic.answer_names) if dynamic is not None and all_exits else (),
    )


def _opened(ways: list[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """By gate, whose gate was open; where no sample of a batch came so far, nobody's."""
    gates = dict.fromkeys(gate for _, opened in ways for gate in opened)
    return {
        gate: torch.cat([opened.get(gate, torch.zeros(len(left_at), dtype=torch.bool)) for left_at, opened in ways])
        for gate in gates
    }


def _joined(labels: list[Any]) -> Any:
    if all(isinstance(part, Tensor) for part in labels):
        return torch.cat(labels)
    if all(isinstance(part, (list, tuple)) for part in labels):
        return [label for part in labels for label in part]
    return None


def _scores(metric: Metric, logits: Tensor, labels: Any) -> np.ndarray:
    scores: np.ndarray = torch.as_tensor(metric.score(logits, labels)).detach().double().cpu().numpy()
    if scores.ndim > 1 or (scores.ndim == 1 and len(scores) != len(logits)):
        raise DataError(
            f"task: the metric {metric.name} must give one number a sample, ({len(logits)},), or one for the set; it gives "
            f"numbers of shape {scores.shape}."
        )
    return scores


def metric_value(metric: Metric, logits: Tensor, labels: Any) -> MetricValue:
    """A metric with its 95 % interval: Wilson's for 0/1 scores, normal for others, bootstrap for one number a set."""
    scores = _scores(metric, logits, labels)
    n = len(logits)
    if scores.ndim == 0:
        value = float(scores)
        low, high = np.quantile(_bootstrap(metric, logits, labels), [0.025, 0.975])
        return MetricValue(metric.name, value, float(low), float(high), n, metric.higher_is_better)
    if np.isin(scores, (0.0, 1.0)).all():
        low, high = wilson_interval(int(scores.sum()), n)
        return MetricValue(metric.name, float(scores.mean()), low, high, n, metric.higher_is_better)
    value, low, high = mean_interval(scores)
    return MetricValue(metric.name, value, low, high, n, metric.higher_is_better)


def accuracy(answers: Answers) -> Accuracy:
    """How many answers are right."""
    right = int(ACCURACY.score(answers.logits, answers.labels).sum())
    return Accuracy(right, answers.n, *wilson_interval(right, answers.n))


def drop(metric: Metric, baseline: Answers, candidate: Answers) -> Drop:
    """How much worse the candidate is than the baseline on the same samples; positive is worse whatever the metric."""
    sign = 1.0 if metric.higher_is_better else -1.0
    first = _scores(metric, baseline.logits, baseline.labels)
    second = _scores(metric, candidate.logits, candidate.labels)
    if first.ndim == 0:
        spread = _bootstrap(metric, baseline.logits, baseline.labels) - _bootstrap(
            metric, candidate.logits, candidate.labels
        )
        low, high = sorted(sign * np.quantile(spread, [0.025, 0.975]))
        return Drop(sign * float(first - second), float(low), float(high))
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        only_first, only_second = int((first > second).sum()), int((second > first).sum())
        if sign < 0:
            only_first, only_second = only_second, only_first
        return Drop(*paired_drop_interval(only_first, only_second, len(first)))
    return Drop(*mean_interval(sign * (first - second)))


def _bootstrap(metric: Metric, logits: Tensor, labels: Any) -> np.ndarray:
    """The metric on resampled sets; the same resamples for every network, so that differences are paired."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(_RESAMPLES):
        index = torch.randint(len(logits), (len(logits),), generator=generator)
        chosen = [labels[i] for i in index.tolist()] if isinstance(labels, list) else labels
        chosen = labels[index] if isinstance(labels, Tensor) else chosen
        values.append(float(metric.score(logits[index], chosen)))
    return np.array(values)
