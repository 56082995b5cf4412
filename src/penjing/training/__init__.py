"""Training: what the network is for (`Task`), one loop (`fit_`), what takes part in it (`Part`), and stages of recipes."""

from penjing.training.fit import Fit, History, Schedule, device_named, fit_, new_accelerator
from penjing.training.journal import Journal
from penjing.training.part import AverageWeights, LearnFromLabels, LearnFromTeacher, Match, Part, over_exits
from penjing.training.stage import BASELINE, Stage, Train, TrainedStage, Workbench
from penjing.training.task import ACCURACY, Batch, Metric, Task

__all__ = [
    "ACCURACY",
    "BASELINE",
    "AverageWeights",
    "Batch",
    "Fit",
    "History",
    "Journal",
    "LearnFromLabels",
    "LearnFromTeacher",
    "Match",
    "Metric",
    "Part",
    "Schedule",
    "Stage",
    "Task",
    "Train",
    "TrainedStage",
    "Workbench",
    "device_named",
    "fit_",
    "new_accelerator",
    "over_exits",
]
