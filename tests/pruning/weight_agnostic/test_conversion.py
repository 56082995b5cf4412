"""The network of torch is the topology: in numbers, traced, trained and from a file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.artifact import load, save
from penjing.errors import SettingError
from penjing.graph import trace
from penjing.pruning.weight_agnostic.conversion import hold_zeros_, to_network, train_weights
from penjing.pruning.weight_agnostic.evaluate import evaluate, evaluate_own
from penjing.pruning.weight_agnostic.topology import Topology, dense

Grow = Callable[..., Topology]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_it_answers_as_numpy_does(grown: Grow, seed: int) -> None:
    topology, generator = grown(seed), np.random.default_rng(seed)
    x = torch.tensor(generator.normal(size=(6, 4)) / 2)
    found = to_network(topology, 0.75).double()(x).detach()  # 0.75 is exact in float32
    np.testing.assert_allclose(found, evaluate(topology, x.numpy(), [0.75])[0], rtol=1e-9, atol=1e-9)
    own = generator.integers(-8, 9, len(topology.source)) / 4
    found = to_network(topology, own).double()(x).detach()
    np.testing.assert_allclose(found, evaluate_own(topology, x.numpy(), own[None])[0], rtol=1e-9, atol=1e-9)


def test_it_is_traced_and_survives_a_file(grown: Grow, tmp_path: Path) -> None:
    topology, x = grown(11, 60), torch.randn(5, 4)
    module = to_network(topology, -1.25)
    network = trace(module, (x,))
    torch.testing.assert_close(network(x), module(x))
    save(network, tmp_path / "small.pj")
    torch.testing.assert_close(load(tmp_path / "small.pj")(x), module(x), rtol=0, atol=0)


def test_training_changes_weights_and_makes_no_connections(grown: Grow) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    topology = grown(3, 60)
    network = trace(to_network(topology, 1.0), (x,))
    zeros = {path: layer.weight == 0 for path, layer in network.layers().items()}
    before = {path: layer.weight.detach().clone() for path, layer in network.layers().items()}
    assert any(zero.any() for zero in zeros.values())
    hold_zeros_(network)
    losses = train_weights(network, x, y, epochs=20, generator=generator)
    assert losses[-1] < losses[0]
    for path, layer in network.layers().items():
        torch.testing.assert_close(layer.weight == 0, zeros[path])
    assert any((layer.weight != before[path]).any() for path, layer in network.layers().items())


def test_dense_layers_have_a_weight_for_each_connection() -> None:
    topology = dense(6, [4, 3], 2)
    module = to_network(topology, 0.5)
    # a later level reads the bias and the layer before it
    assert sum(p.numel() for p in module.parameters()) == topology.n_connections == 7 * 4 + 5 * 3 + 4 * 2


def test_another_number_of_weights_is_refused(grown: Grow) -> None:
    with pytest.raises(SettingError, match="weight must be one number"):
        to_network(grown(0), [1.0, 2.0])
