"""What torch-pruning does with one network, in a process of its own: python rival.py LIBRARY NAME RECORD.json LIMIT."""

import json
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from measure import SPARSITY, answer, text_of
from networks import find, n_parameters, shim


class OutOfTime(BaseException):
    """Not an Exception, so that nobody in between takes it for one of theirs."""


def prune_(model: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Half of the channels of every group, by magnitude; the classifier keeps its outputs."""
    import torch_pruning as tp  # noqa: PLC0415  # after the shim

    heads = [m for m in model.modules() if 1000 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    importance = tp.importance.MagnitudeImportance()
    tp.pruner.MagnitudePruner(
        model, tuple(x[:1] for x in example), importance=importance, pruning_ratio=SPARSITY, ignored_layers=heads
    ).step()


def measure(library: str, name: str, limit: int) -> dict[str, Any]:
    """Seconds, and whether the network still computes.

    Args:
        limit: seconds of the processor after which pruning is stopped.
    """
    torch.manual_seed(0)
    model, inputs = find(library, name).make()
    assert isinstance(inputs, tuple)
    before = n_parameters(model)
    record: dict[str, Any] = {"forward": False, "failure": ""}
    begun, begun_wall = time.process_time(), time.perf_counter()
    signal.signal(signal.SIGPROF, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        prune_(model, inputs)
    except (Exception, OutOfTime) as error:
        record["failure"] = text_of(error)
    signal.setitimer(signal.ITIMER_PROF, 0)
    record |= {"seconds": time.process_time() - begun, "wall": time.perf_counter() - begun_wall}
    try:
        with torch.no_grad():
            answer(model, inputs)
        record["forward"] = not record["failure"]
    except Exception as error:
        record["failure"] = record["failure"] or text_of(error)
    return record | {"removed": 1 - n_parameters(model) / before}


def _out_of_time(*_: object) -> None:
    raise OutOfTime("it was stopped")


def main() -> None:
    """Measure and write the record."""
    library, name, path, limit = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    shim()
    prune_(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1000, 1)), (torch.randn(1, 3, 4, 4),))  # as for ours
    Path(path).write_text(json.dumps(measure(library, name, int(limit))), encoding="utf-8")


if __name__ == "__main__":
    main()
