"""Figures as text: what a reader would quote must be right."""

import pytest

from penjing.measurement.record import BudgetLine, Drop, Latency, MetricValue
from penjing.report.figures import (
    say_drop,
    say_gain,
    say_latency,
    show_budget_value,
    show_drop,
    show_drop_interval,
    show_ms,
    show_signed,
)

ACCURACY = MetricValue("accuracy", 0.9, 0.89, 0.91, 1000)
LOSS = MetricValue("loss", 0.3, 0.2, 0.4, 1000, higher_is_better=False)


def test_a_drop_reads_as_the_change_of_the_metric() -> None:
    drop = Drop(0.01, -0.002, 0.02)
    assert show_drop(drop, ACCURACY) == "−1.00\u00a0pp"
    assert show_drop_interval(drop, ACCURACY) == "−2.00 to +0.20"
    assert show_drop(drop, LOSS) == "+0.0100"
    assert show_drop_interval(drop, LOSS) == "−0.0020 to +0.0200"


@pytest.mark.parametrize(
    ("value", "metric", "words"),
    [
        (0.01, ACCURACY, "1.00\u00a0pp below the baseline"),
        (-0.01, ACCURACY, "1.00\u00a0pp above the baseline"),
        (0.00001, ACCURACY, "the same as the baseline"),
        (0.01, LOSS, "0.0100 above the baseline"),
        (-0.01, LOSS, "0.0100 below the baseline"),
    ],
)
def test_a_drop_is_said_with_its_side(value: float, metric: MetricValue, words: str) -> None:
    assert say_drop(Drop(value, value - 0.1, value + 0.1), metric).startswith(words)


def test_latency_says_when_it_cannot_tell() -> None:
    assert say_latency(Latency(1, 0.9, 1.1), Latency(2, 1.9, 2.1)) == "2.0× faster"
    assert say_latency(Latency(3, 2.9, 3.1), Latency(2, 1.9, 2.1)) == "1.5× slower"
    assert say_latency(Latency(2, 1.8, 2.2), Latency(2.1, 1.9, 2.3)) == "1.05× faster, spreads overlap"


def test_gains() -> None:
    assert say_gain(1000, 2, "smaller", "larger") == "500× smaller"
    assert say_gain(2, 3, "smaller", "larger") == "1.5× larger"
    assert say_gain(1000, 1001, "smaller", "larger") == "the same"
    assert say_gain(0, 5, "smaller", "larger") == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0.0421, "0.0421"), (0.5, "0.500"), (1.234, "1.23"), (45.67, "45.7"), (789, "789")]
)
def test_milliseconds(value: float, text: str) -> None:
    assert show_ms(value) == f"{text}\u00a0ms"


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert show_signed(-0.001, 2) == "0.00"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("file", 4000, "4.00 kB"),
        ("drop", 0.01, "1.00\u00a0pp"),
        ("latency", 5, "5.00\u00a0ms"),
        ("parameters", 6400, "6.4k"),
        ("macs", 1.5e6, "1.5M"),
        ("latency", float("nan"), "not measured"),
        ("other", 0.125, "0.125"),
    ],
)
def test_limits_have_the_unit_of_their_name(name: str, value: float, text: str) -> None:
    assert show_budget_value(BudgetLine(name, value, value, True, ""), value) == text
