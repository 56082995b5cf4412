"""The language that chooses layers."""

import pytest
import torch
from torch import nn

from penjing.errors import SettingError
from penjing.graph import select
from penjing.representation import Mask, represent_

LAYERS = [
    ("stem", nn.Conv2d(3, 4, 3)),
    ("features.0", nn.Conv2d(4, 4, 3)),
    ("features.1", nn.BatchNorm2d(4)),
    ("features.10", nn.Linear(4, 4)),
    ("head.linear", nn.Linear(4, 2)),
]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["features.1"], ["features.1"]),
        (["features.*"], ["features.0", "features.1", "features.10"]),
        (["*1"], ["features.1"]),
        (["*"], [name for name, _ in LAYERS]),
        (["type:Conv2d"], ["stem", "features.0"]),
        (["type:*a*"], ["features.1", "features.10", "head.linear"]),
        (["type:Linear", "stem"], ["stem", "features.10", "head.linear"]),
        (["!stem"], ["features.0", "features.1", "features.10", "head.linear"]),
        (["!type:Conv2d", "!head.*"], ["features.1", "features.10"]),
        (["type:Conv2d", "!stem", "stem"], ["stem", "features.0"]),
        (["stem", "!stem"], []),
        ([], []),
    ],
)
def test_patterns_are_read_from_left_to_right(patterns: list[str], chosen: list[str]) -> None:
    assert select(LAYERS, patterns) == chosen


def test_what_matches_nothing_is_an_error_that_helps() -> None:
    with pytest.raises(SettingError, match=r'prune: layers: no layer matches "features.2"; did you mean "features.1"'):
        select(LAYERS, ["features.2"], "prune: layers")
    with pytest.raises(SettingError, match='did you mean "type:Conv2d"'):
        select(LAYERS, ["type:conv2d"])
    with pytest.raises(SettingError, match='no layer matches "!nothing"'):
        select(LAYERS, ["*", "!nothing"])


def test_type_is_seen_through_representations() -> None:
    layer = nn.Linear(3, 2)
    represent_(layer, "weight", Mask(torch.ones(2, 3)))
    assert select([("a", layer)], ["type:Linear"]) == ["a"]
