"""Training: what the network is for (`Task`), one loop (`fit_`), what takes part in it (`Part`), and stages of recipes."""

from penjing.training.averages import AverageEpochs, AverageWeights, mean_of_weights, measure_batch_norms_
from penjing.training.fit import Fit, History, Schedule, device_named, fit_, new_accelerator
from penjing.training.journal import Journal
from penjing.training.named import called, import_function, load_model
from penjing.training.part import Freeze, LearnFromLabels, Part, over_exits
from penjing.training.stage import BASELINE, PartlyTrainedStage, Stage, Train, TrainedStage, Workbench
from penjing.training.task import ACCURACY, Batch, Metric, Task
from penjing.training.teacher import Agree, Teacher, agreed
from penjing.training.teaching import (
    LearnFromLayers,
    LearnFromTeacher,
    Match,
    layer_pairs,
    patient_mapping,
    regressor_between,
)

__all__ = [
    "ACCURACY",
    "BASELINE",
    "Agree",
    "AverageEpochs",
    "AverageWeights",
    "Batch",
    "Fit",
    "Freeze",
    "History",
    "Journal",
    "LearnFromLabels",
    "LearnFromLayers",
    "LearnFromTeacher",
    "Match",
    "Metric",
    "Part",
    "PartlyTrainedStage",
    "Schedule",
    "Stage",
    "Task",
    "Teacher",
    "Train",
    "TrainedStage",
    "Workbench",
    "agreed",
    "called",
    "device_named",
    "fit_",
    "import_function",
    "layer_pairs",
    "load_model",
    "mean_of_weights",
    "measure_batch_norms_",
    "new_accelerator",
    "over_exits",
    "patient_mapping",
    "regressor_between",
]
