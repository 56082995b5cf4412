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
    from penjing.artifact import (
        Networks,
        Packing,
        inspect,
        load,
        load_into,
        load_networks,
        open_artifact,
        pack,
        save,
        unpack,
    )
    from penjing.distillation import Distill
    from penjing.dynamic import EarlyExits
    from penjing.errors import PenjingError
    from penjing.graph import Network, trace
    from penjing.inference import accelerate
    from penjing.measurement import bench
    from penjing.objective import decoupled_distillation_loss, dist_loss, logit_regression_loss, soft_target_loss
    from penjing.papers import claim_named, reproduce
    from penjing.pruning import (
        GroupLasso,
        LotteryTicket,
        PruneBlocks,
        PruneChannels,
        Pruned,
        PruneHeads,
        PruneWeights,
        SensitivityScan,
        Supermask,
        TrainFromScratch,
        prune_channels,
        sensitivity_scan,
    )
    from penjing.quantization import CalibratedCoding, Cluster, Quantize
    from penjing.recipe import Budget, Recipe, Run, compress, read_recipe
    from penjing.sensitivity import Evidence
    from penjing.training import Batch, Metric, Part, Stage, Task, Train, Workbench, fit_

_HOME = {
    "SeparableConvs": "architecture",
    "Networks": "artifact",
    "inspect": "artifact",
    "load": "artifact",
    "load_into": "artifact",
    "load_networks": "artifact",
    "open_artifact": "artifact",
    "Packing": "artifact",
    "pack": "artifact",
    "save": "artifact",
    "unpack": "artifact",
    "Distill": "distillation",
    "EarlyExits": "dynamic",
    "PenjingError": "errors",
    "Network": "graph",
    "trace": "graph",
    "accelerate": "inference",
    "bench": "measurement",
    "soft_target_loss": "objective",
    "decoupled_distillation_loss": "objective",
    "dist_loss": "objective",
    "logit_regression_loss": "objective",
    "claim_named": "papers",
    "reproduce": "papers",
    "GroupLasso": "pruning",
    "LotteryTicket": "pruning",
    "PruneBlocks": "pruning",
    "PruneChannels": "pruning",
    "PruneHeads": "pruning",
    "PruneWeights": "pruning",
    "Pruned": "pruning",
    "SensitivityScan": "pruning",
    "Supermask": "pruning",
    "TrainFromScratch": "pruning",
    "prune_channels": "pruning",
    "sensitivity_scan": "pruning",
    "CalibratedCoding": "quantization",
    "Cluster": "quantization",
    "Quantize": "quantization",
    "Budget": "recipe",
    "Recipe": "recipe",
    "Run": "recipe",
    "compress": "recipe",
    "read_recipe": "recipe",
    "Evidence": "sensitivity",
    "Batch": "training",
    "Metric": "training",
    "Part": "training",
    "Stage": "training",
    "Task": "training",
    "Train": "training",
    "Workbench": "training",
    "fit_": "training",
}

__all__ = [
    "Batch",
    "Budget",
    "CalibratedCoding",
    "Cluster",
    "Distill",
    "EarlyExits",
    "Evidence",
    "GroupLasso",
    "LotteryTicket",
    "Metric",
    "Network",
    "Networks",
    "Packing",
    "Part",
    "PenjingError",
    "PruneBlocks",
    "PruneChannels",
    "PruneHeads",
    "PruneWeights",
    "Pruned",
    "Quantize",
    "Recipe",
    "Run",
    "SensitivityScan",
    "SeparableConvs",
    "Stage",
    "Supermask",
    "Task",
    "Train",
    "TrainFromScratch",
    "Workbench",
    "__version__",
    "accelerate",
    "bench",
    "claim_named",
    "compress",
    "decoupled_distillation_loss",
    "dist_loss",
    "fit_",
    "inspect",
    "load",
    "load_into",
    "load_networks",
    "logit_regression_loss",
    "open_artifact",
    "pack",
    "prune_channels",
    "read_recipe",
    "reproduce",
    "save",
    "sensitivity_scan",
    "soft_target_loss",
    "trace",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"penjing.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'penjing' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
