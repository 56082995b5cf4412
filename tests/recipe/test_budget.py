"""Limits: read in people's units, checked against what was measured."""

import math
from typing import Any

import pytest

from penjing.errors import SettingError
from penjing.measurement import Drop, Latency, MetricValue, Record
from penjing.recipe import Budget

METRIC = MetricValue("accuracy", 0.98, 0.97, 0.99, 100)


def record(**more: Any) -> Record:
    values: dict[str, Any] = {
        "name": "x", "data": "valid", "metric": METRIC, "parameters": 6400, "nonzero": 6400, "macs": 1.5e6,
        "macs_full": 2_000_000, "file_bytes": 4000, "latency_ms": Latency(5.0, 4.0, 6.0), "drop": Drop(0.002, -0.001, 0.01),
    }  # fmt: skip
    return Record(**(values | more))


def test_every_limit_is_met_on_its_edge_and_not_beyond() -> None:
    edge = Budget(file="4 kB", parameters="6.4k", macs="1.5 M", latency="5 ms", drop="1 pp")
    assert [line.met for line in edge.check(record())] == [True] * 5
    over = record(
        file_bytes=4001, parameters=6401, macs=1.5e6 + 1, latency_ms=Latency(5.1, 4.0, 6.0), drop=Drop(0, 0, 0.0101)
    )
    lines = edge.check(over)
    assert [line.met for line in lines] == [False] * 5
    assert all(line.text.startswith(line.name) and line.text.endswith("not met") for line in lines)


def test_the_drop_is_met_by_the_upper_end_of_its_interval() -> None:
    (line,) = Budget(drop="0.5 pp").check(record(drop=Drop(0.001, -0.004, 0.006)))
    assert line.measured == 0.006 and not line.met and "0.60 pp of at most 0.50 pp" in line.text


def test_only_what_is_limited_is_checked_and_what_is_not_measured_is_not_met() -> None:
    assert Budget().check(record()) == []
    (line,) = Budget(drop=0.01).check(record(drop=None))
    assert not line.met and math.isnan(line.measured) and "not measured" in line.text


def test_units() -> None:
    assert Budget(file="60 KiB").file == 61440 and Budget(file=60).file == 60
    assert Budget(drop="1 pp").drop == Budget(drop=0.01).drop == Budget(drop="1 %").drop == 0.01
    assert Budget(latency="300 us").latency == pytest.approx(0.3)
    assert Budget(macs="1.5 M").macs == 1_500_000 and Budget(parameters="6.4k").parameters == 6400


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"file": "4 parsec"}, "budget: file: must be a positive size"),
        ({"file": -1}, "positive size"),
        ({"file": -1.0}, "budget: file"),
        ({"file": True}, "budget: file"),
        ({"latency": "fast"}, 'budget: latency: .*"fast"'),
        ({"drop": 1}, 'budget: drop.*Write "1 pp" or 0.01'),
        ({"macs": 0}, "budget: .*positive count"),
        ({"size": 1}, 'no setting "size".*file'),
    ],
)
def test_limits_that_cannot_be_meant(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Budget(**bad)


def test_records_survive_json() -> None:
    import json

    full = record(budget=Budget(file=1).check(record()), warnings=["w"], layer_bytes={"a": 1}, facts={"x": [1]})
    assert Record.from_json(json.loads(json.dumps(full.to_json()))) == full
