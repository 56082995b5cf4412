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
    from penjing.architecture import (
        Factorisation,
        FireModules,
        GhostModules,
        GroupedConvs,
        LowRank,
        SeparableConvs,
        factorise,
    )
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
    from penjing.data import Versions
    from penjing.distillation import CorrectBiases, Distill, Hint, Student
    from penjing.dynamic import (
        DropBlocks,
        EarlyExits,
        RouteChannels,
        SkipBlocks,
        Slimmable,
        answers_in_time,
        at_width,
        best_answer,
        make_slimmable,
    )
    from penjing.errors import PenjingError
    from penjing.graph import Network, cut_out, trace
    from penjing.inference import accelerate
    from penjing.measurement import bench
    from penjing.objective import (
        attention_transfer_loss,
        decoupled_distillation_loss,
        dist_loss,
        hint_loss,
        logit_regression_loss,
        patient_loss,
        similarity_loss,
        soft_target_loss,
    )
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
    from penjing.training import (
        AverageEpochs,
        AverageWeights,
        Batch,
        Freeze,
        LearnFromLabels,
        LearnFromLayers,
        LearnFromTeacher,
        Metric,
        Part,
        Stage,
        Task,
        Teacher,
        Train,
        Workbench,
        fit_,
        measure_batch_norms_,
    )

_HOME = {
    "SeparableConvs": "architecture",
    "LowRank": "architecture",
    "Factorisation": "architecture",
    "factorise": "architecture",
    "GroupedConvs": "architecture",
    "FireModules": "architecture",
    "GhostModules": "architecture",
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
    "Versions": "data",
    "Distill": "distillation",
    "Hint": "distillation",
    "Student": "distillation",
    "CorrectBiases": "distillation",
    "EarlyExits": "dynamic",
    "Controller": "dynamic",
    "Slimmable": "dynamic",
    "SkipBlocks": "dynamic",
    "DropBlocks": "dynamic",
    "RouteChannels": "dynamic",
    "answers_in_time": "dynamic",
    "at_width": "dynamic",
    "best_answer": "dynamic",
    "make_slimmable": "dynamic",
    "PenjingError": "errors",
    "Network": "graph",
    "cut_out": "graph",
    "trace": "graph",
    "accelerate": "inference",
    "bench": "measurement",
    "soft_target_loss": "objective",
    "decoupled_distillation_loss": "objective",
    "dist_loss": "objective",
    "logit_regression_loss": "objective",
    "hint_loss": "objective",
    "attention_transfer_loss": "objective",
    "patient_loss": "objective",
    "similarity_loss": "objective",
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
    "Teacher": "training",
    "LearnFromTeacher": "training",
    "LearnFromLayers": "training",
    "LearnFromLabels": "training",
    "Freeze": "training",
    "AverageEpochs": "training",
    "AverageWeights": "training",
    "measure_batch_norms_": "training",
}

__all__ = [
    "AverageEpochs",
    "AverageWeights",
    "Batch",
    "Budget",
    "CalibratedCoding",
    "Cluster",
    "Controller",
    "CorrectBiases",
    "Distill",
    "DropBlocks",
    "EarlyExits",
    "Evidence",
    "Factorisation",
    "FireModules",
    "Freeze",
    "GhostModules",
    "GroupLasso",
    "GroupedConvs",
    "Hint",
    "LearnFromLabels",
    "LearnFromLayers",
    "LearnFromTeacher",
    "LotteryTicket",
    "LowRank",
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
    "RouteChannels",
    "Run",
    "SensitivityScan",
    "SeparableConvs",
    "SkipBlocks",
    "Slimmable",
    "Stage",
    "Student",
    "Supermask",
    "Task",
    "Teacher",
    "Train",
    "TrainFromScratch",
    "Versions",
    "Workbench",
    "__version__",
    "accelerate",
    "answers_in_time",
    "at_width",
    "attention_transfer_loss",
    "bench",
    "best_answer",
    "claim_named",
    "compress",
    "cut_out",
    "decoupled_distillation_loss",
    "dist_loss",
    "factorise",
    "fit_",
    "hint_loss",
    "inspect",
    "load",
    "load_into",
    "load_networks",
    "logit_regression_loss",
    "make_slimmable",
    "measure_batch_norms_",
    "open_artifact",
    "pack",
    "patient_loss",
    "prune_channels",
    "read_recipe",
    "reproduce",
    "save",
    "sensitivity_scan",
    "similarity_loss",
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
