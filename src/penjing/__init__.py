"""penjing makes trained networks small and measures what that cost.

    import penjing as pj

    task = pj.Task(train=train_loader, valid=valid_loader, test=test_loader)
    run = pj.compress(model, task, [pj.SeparableConvs(), pj.Distill(epochs=8), pj.Cluster(bits=4)], out="runs/first")
    print(run.report)
    run.save("small.pj")
    network = pj.load("small.pj")

Names are imported when they are first used, so that `import penjing` and `penjing --help` do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from penjing.version import __version__

if TYPE_CHECKING:
    from penjing.architecture import SeparableConvs
    from penjing.artifact import inspect, load
    from penjing.distillation import Distill
    from penjing.dynamic import EarlyExits
    from penjing.errors import PenjingError
    from penjing.graph import Network, trace
    from penjing.measurement import bench
    from penjing.objective import soft_target_loss
    from penjing.pruning import PruneChannels
    from penjing.quantization import Cluster
    from penjing.recipe import Budget, Recipe, Run, compress, read_recipe
    from penjing.training import Batch, Metric, Part, Stage, Task, Train, fit_

_HOME = {
    "SeparableConvs": "architecture",
    "inspect": "artifact",
    "load": "artifact",
    "Distill": "distillation",
    "EarlyExits": "dynamic",
    "PenjingError": "errors",
    "Network": "graph",
    "trace": "graph",
    "bench": "measurement",
    "soft_target_loss": "objective",
    "PruneChannels": "pruning",
    "Cluster": "quantization",
    "Budget": "recipe",
    "Recipe": "recipe",
    "Run": "recipe",
    "compress": "recipe",
    "read_recipe": "recipe",
    "Batch": "training",
    "Metric": "training",
    "Part": "training",
    "Stage": "training",
    "Task": "training",
    "Train": "training",
    "fit_": "training",
}

__all__ = [
    "Batch",
    "Budget",
    "Cluster",
    "Distill",
    "EarlyExits",
    "Metric",
    "Network",
    "Part",
    "PenjingError",
    "PruneChannels",
    "Recipe",
    "Run",
    "SeparableConvs",
    "Stage",
    "Task",
    "Train",
    "__version__",
    "bench",
    "compress",
    "fit_",
    "inspect",
    "load",
    "read_recipe",
    "soft_target_loss",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"penjing.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'penjing' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
