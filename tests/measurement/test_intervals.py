"""Intervals against values computed by hand or published."""

import numpy as np
import pytest

from penjing.measurement import mean_interval, paired_drop_interval, wilson_interval


def test_wilson_against_published_values() -> None:
    """15 of 148: Newcombe 1998, Statistics in Medicine 17, table I, method 3: 0.0624 to 0.1605; 0 of 20: 0 to 0.1611."""
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_is_where_the_score_test_is_on_the_edge() -> None:
    low, high = wilson_interval(91, 100)
    for p in (low, high):
        assert abs(0.91 - p) / (p * (1 - p) / 100) ** 0.5 == pytest.approx(1.95996, abs=1e-4)


def test_the_paired_interval_by_hand() -> None:
    """b = 9, c = 4, n = 98: p = 10/100, q = 5/100, half = 1.95996 sqrt((0.15 - 0.0025) / 100) = 0.07527."""
    value, low, high = paired_drop_interval(9, 4, 98)
    assert value == pytest.approx(5 / 98)
    assert (low, high) == pytest.approx((0.05 - 0.07527, 0.05 + 0.07527), abs=1e-5)
    back = paired_drop_interval(4, 9, 98)
    assert back == pytest.approx((-value, -high, -low))


def test_equal_networks_still_have_an_interval() -> None:
    value, low, high = paired_drop_interval(0, 0, 10000)
    assert value == 0 and low < 0 < high < 0.001


def test_the_interval_of_a_mean_by_hand() -> None:
    mean, low, high = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    half = 1.959964 * (5 / 3) ** 0.5 / 2
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-6)
