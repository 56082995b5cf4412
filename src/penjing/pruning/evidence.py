"""What a stage's measures of importance look at: its training samples, and the loss that it trains with."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from penjing.graph import Network
from penjing.representation import named_weights
from penjing.sensitivity import Evidence
from penjing.training import Batch, TrainedStage, Workbench, over_exits


def samples_of(bench: Workbench, n_batches: int) -> Iterator[Batch]:
    """The first batches of the training set, where the run computes."""
    return itertools.islice(bench.task.batches(bench.task.train, bench.accelerator.device), n_batches)


def evidence_of(stage: TrainedStage, bench: Workbench, n_batches: int) -> Evidence:
    """Training samples and the loss: of the labels, or where there are none of the teacher's answers.

    The network is moved to where the run computes. The weights before training are those that an earlier stage kept, where they
    still fit.
    """
    device = bench.accelerator.device
    bench.network.to(device)
    teacher = stage.named_teacher(bench).to(device) if stage.teachers else None

    def loss(network: Network, batch: Batch) -> Tensor:
        answers = network.all_answers(*batch.args, **batch.kwargs)
        if batch.labels is None and teacher is not None:
            target = teacher.compute(batch)[0].softmax(-1)
            return over_exits(answers, lambda a: torch.nn.functional.cross_entropy(a, target))
        return over_exits(answers, lambda a: bench.task.loss(a, batch.labels))

    shapes = {name: getattr(owner, own).shape for name, owner, own in named_weights(bench.network)}
    kept = bench.kept.get(0, {})
    fits = all(name in kept and kept[name].shape == shape for name, shape in shapes.items())
    return Evidence(lambda: samples_of(bench, n_batches), loss, {name: kept[name] for name in shapes} if fits else None)
