"""Fronts against brute force, and the crowding of a front by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penjing.pruning.weight_agnostic.ranking import crowding, fronts, ranked

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30)


def brute_force(values: list[tuple[int, int]]) -> list[list[int]]:
    def dominates(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    left, found = list(range(len(values))), []
    while left:
        front = [i for i in left if not any(dominates(values[j], values[i]) for j in left)]
        found.append(front)
        left = [i for i in left if i not in front]
    return found


@given(points)
def test_fronts_are_those_of_brute_force(values: list[tuple[int, int]]) -> None:
    assert [front.tolist() for front in fronts(np.array(values, dtype=float))] == brute_force(values)


@given(points)
def test_the_rank_keeps_the_order_of_fronts_and_loses_nobody(values: list[tuple[int, int]]) -> None:
    order = ranked(np.array(values, dtype=float)).tolist()
    assert sorted(order) == list(range(len(values)))
    front_of = {i: number for number, front in enumerate(brute_force(values)) for i in front}
    assert [front_of[i] for i in order] == sorted(front_of.values())


def test_crowding_is_the_sum_of_scaled_gaps() -> None:
    front = np.array([[0.0, 10.0], [1.0, 7.0], [4.0, 6.0], [10.0, 0.0]])
    np.testing.assert_allclose(crowding(front), [np.inf, 0.4 + 0.4, 0.9 + 0.7, np.inf])
    assert ranked(front).tolist() == [0, 3, 2, 1]


def test_crowding_of_equal_members_divides_by_nothing() -> None:
    assert np.isfinite(crowding(np.ones((3, 2)))[1])
