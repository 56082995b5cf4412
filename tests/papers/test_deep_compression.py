"""The claims about coding: their pipelines are the recipes', their accounts are the coders', and their arms carry through."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from penjing.artifact import encode
from penjing.entropy import context_coder, relative_index
from penjing.graph import trace
from penjing.papers import claim_named
from penjing.papers.clustered import Matrix, accounts, coded, matrices
from penjing.papers.deep_compression import FULL, LENET5, LENET_300_100, MODELS, _load_masked_
from penjing.pruning.masks import apply_masks_
from penjing.quantization import cluster_network
from penjing.recipe import read_recipe
from penjing.training import import_function

RECIPES = {LENET_300_100: "deep-compression-300.yaml", LENET5: "deep-compression-5.yaml"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_claims_pipeline(name: str) -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / RECIPES[name])
    pipeline = FULL[name]
    assert recipe.stages == pipeline.read()
    assert recipe.data == {"name": "mnist", "batch_size": pipeline.batch_size, "augment": pipeline.augment}
    assert import_function(recipe.model["function"], "model", {}) is MODELS[name]


def test_every_check_of_both_claims_can_be_read_from_its_arms() -> None:
    for name in ("deep-compression", "huffman"):
        claim = claim_named(name)
        for settings in claim.settings.values():
            assert len({check.says for check in claim.checks(settings)}) == len(claim.checks(settings)) > 4
            assert claim.arms(settings)


def test_codes_of_a_sparse_network_are_counted_as_the_coders_write_them() -> None:
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 5)), (torch.randn(2, 60),))
    apply_masks_(network, {"0.weight": torch.rand(40, 60) < 0.1})
    clustered, _ = cluster_network(network, 8)
    found = matrices(clustered)
    assert set(found) == {"0.weight", "2.weight"} and found["0.weight"].sparse and not found["2.weight"].sparse
    layer = found["0.weight"]
    kept = clustered.get_submodule("0").weight.detach().numpy() != 0
    np.testing.assert_array_equal(layer.codes != 0, kept)
    figures = accounts(layer)
    written = relative_index.encode(layer.codes, layer.k, figures["index bits"])
    assert 8 * len(written) == figures["P+Q+H"] - 32 * 7 + figures["Huffman tables"]
    assert figures["kept"] == kept.sum() == figures["entries"] - figures["fillers"]
    assert figures["P+Q"] == figures["entries"] * (3 + figures["index bits"]) + 32 * 7
    assert all(accounts(layer, b)["P+Q"] >= figures["P+Q"] for b in range(2, 10))
    ways = coded(layer)
    assert ways["fixed"] == 3 * 2400 and ways["entropy"] <= ways["Huffman"] < ways["entropy"] + 2400
    assert ways["contexts"] == 8 * len(context_coder.encode(layer.ranks[layer.codes]))
    assert 8 * len(encode(clustered)) > ways["contexts"]


def test_one_value_takes_no_bits() -> None:
    ways = coded(Matrix(np.zeros((3, 4), np.int64), np.zeros(1, np.int32), sparse=False))
    assert ways["fixed"] == ways["Huffman"] == ways["entropy"] == ways["range"] == 0


def test_a_pruned_network_is_read_back_with_its_masks() -> None:
    torch.manual_seed(0)

    def fresh() -> object:
        return trace(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 6),))

    pruned, other = fresh(), fresh()
    apply_masks_(pruned, {"0.weight": torch.rand(4, 6) < 0.5})
    _load_masked_(other, pruned.state_dict())
    x = torch.randn(3, 6)
    assert torch.equal(other(x), pruned(x)) and encode(other) == encode(pruned)
