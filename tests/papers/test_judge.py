"""Verdicts come from intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from penjing.papers.judge import interval, judge, overall, shown


def test_the_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0, 3.5]
    mean, low, high = interval(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean, low, high) == pytest.approx((np.mean(values), *expected))


def test_its_coverage_is_what_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = [low <= 0.0 <= high for _, low, high in (interval(generator.normal(size=3)) for _ in range(4000))]
    assert 0.94 <= np.mean(hits) <= 0.96


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=8), st.floats(-100, 100))
def test_verdicts_are_where_the_interval_lies(differences: list[float], bound: float) -> None:
    found = judge(differences, bound)
    assert found.low <= found.mean + 1e-9 and found.mean <= found.high + 1e-9
    assert (found.verdict == "holds") == (found.low >= bound)
    assert (found.verdict == "fails") == (found.high < bound)


def test_fewer_than_three_seeds_decide_nothing() -> None:
    assert judge([5.0, 5.0], 0.0).verdict == "undecided"
    assert math.isnan(judge([5.0], 0.0).low)
    assert judge([5.0, 5.0, 5.0], 0.0).verdict == "holds"
    assert judge([5.0, 5.0, math.nan], 0.0).verdict == "undecided"


def test_one_failure_fails_a_claim() -> None:
    assert overall(["holds", "fails", "undecided"]) == "fails"
    assert overall(["holds", "undecided"]) == "undecided"
    assert overall(["holds", "holds"]) == "holds"
    assert overall([]) == "undecided"


def test_people_see_an_interval_only_where_there_is_one() -> None:
    assert shown(1.23456, 0.5, 2.0) == "1.23 [0.5, 2]"
    assert shown(1.23456, None, None) == "1.23"
    assert shown(None, None, None) == "no number"
