"""What a network is, measured: accuracy, work, size, memory, time."""

from penjing.measurement.accuracy import Answers, accuracy, answer, drop, metric_value
from penjing.measurement.blocks import block_shares
from penjing.measurement.intervals import mean_interval, paired_drop_interval, wilson_interval
from penjing.measurement.latency import Runtime, Timing, Worker, bench, take_turns, time_exits
from penjing.measurement.macs import (
    layer_macs,
    macs_by_node,
    macs_of_answers,
    macs_of_samples,
    macs_to_exits,
    macs_without_exits,
)
from penjing.measurement.record import (
    SCHEMA_VERSION,
    Accuracy,
    BudgetLine,
    Drop,
    Latency,
    MetricValue,
    OperatingPoint,
    Record,
)
from penjing.measurement.size import count_parameters, peak_memory_bytes

__all__ = [
    "SCHEMA_VERSION",
    "Accuracy",
    "Answers",
    "BudgetLine",
    "Drop",
    "Latency",
    "MetricValue",
    "OperatingPoint",
    "Record",
    "Runtime",
    "Timing",
    "Worker",
    "accuracy",
    "answer",
    "bench",
    "block_shares",
    "count_parameters",
    "drop",
    "layer_macs",
    "macs_by_node",
    "macs_of_answers",
    "macs_of_samples",
    "macs_to_exits",
    "macs_without_exits",
    "mean_interval",
    "metric_value",
    "paired_drop_interval",
    "peak_memory_bytes",
    "take_turns",
    "time_exits",
    "wilson_interval",
]
