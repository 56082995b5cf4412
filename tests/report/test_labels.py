"""Names of points: none covers another where there is room."""

from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.report.labels import place_labels


def test_neighbours_are_told_apart() -> None:
    places = place_labels([(50, 100, "first"), (52, 102, "second"), (390, 100, "at the edge")], 400, 300)
    assert places[0] != places[1]
    assert places[2].align == "right"


@settings(deadline=None)  # machines are busy at times
@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300), st.text(max_size=12)), max_size=12))
def test_every_point_gets_a_place(points: list[tuple[float, float, str]]) -> None:
    assert len(place_labels(points, 400, 300)) == len(points)
