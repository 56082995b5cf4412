"""Speed classes: a fast file holds the same numbers, in Huffman's code or packed; small is the default."""

import pytest
import torch
from torch import nn

from penjing.artifact import decode, encode, inspect, save
from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.quantization import Scheme, cluster_, quantize_
from penjing.recipe import Recipe
from penjing.representation import Mask, represent_


def network() -> Network:
    torch.manual_seed(0)
    found = trace(
        nn.Sequential(nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 40), nn.Linear(40, 30), nn.Linear(30, 40)),
        [torch.randn(2, 60)],
    )
    quantize_(found.get_submodule("0"), "weight", Scheme(4))
    represent_(found.get_submodule("2"), "weight", Mask(torch.rand(40, 50) < 0.2))
    cluster_(found.get_submodule("2"), "weight", 9)
    cluster_(found.get_submodule("3"), "weight", 30)
    quantize_(found.get_submodule("4"), "weight", Scheme(12))  # more codes than a range coder's model may have
    return found.eval()


def test_fast_files_hold_the_same_in_codes_that_are_read_fast(tmp_path) -> None:  # type: ignore[no-untyped-def]
    small, fast = encode(network()), encode(network(), speed="fast")
    assert encode(network(), speed="small") == small and len(small) < len(fast) < 1.5 * len(small)
    for (name, one), (_, other) in zip(
        decode(small).state_dict().items(), decode(fast).state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    assert save(network(), tmp_path / "fast.pj", speed="fast") == len(fast)
    coders = {row.name: row.codec for row in inspect(tmp_path / "fast.pj")}
    weights = [name for name in coders if name.endswith("weight")]
    assert len(weights) == 4 and all("huffman" in coders[name] or "packed" in coders[name] for name in weights)
    before = save(network(), tmp_path / "small.pj")
    assert before == len(small)
    assert not any("huffman" in row.codec for row in inspect(tmp_path / "small.pj") if row.name.endswith("weight"))


def test_other_speeds_are_refused() -> None:
    with pytest.raises(SettingError, match='speed must be "small" or "fast", got \'faster\''):
        encode(network(), speed="faster")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="speed"):
        Recipe(data="digits", model="penjing.models:lenet5", stages=["train"], speed="faster")


def test_a_recipe_keeps_its_speed() -> None:
    recipe = Recipe(data="digits", model="penjing.models:lenet5", stages=["train"], speed="fast")
    assert Recipe(**recipe.to_data()) == recipe and recipe.to_data()["speed"] == "fast"
