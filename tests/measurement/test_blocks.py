"""What was computed of each block, by the names of the user's layers."""

import torch

from penjing.dynamic.blocks import gate_blocks, residual_blocks
from penjing.dynamic.channel_sets import split_blocks
from penjing.dynamic.gates import recurrent_gates, with_gates
from penjing.graph import Network, trace
from penjing.measurement import block_shares
from penjing.models import resnet_cifar

NAMES = ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]


def resnet() -> Network:
    return trace(resnet_cifar(14, width=8).eval(), (torch.zeros(2, 3, 16, 16),))


def test_gates_are_named_by_their_blocks_and_count_as_all_or_nothing() -> None:
    network = resnet()
    blocks = residual_blocks(network)
    network, logits = recurrent_gates(network, blocks)
    network, gates = with_gates(network, [(name, 0) for name in logits])
    network = gate_blocks(network, blocks, gates)
    opened = {gate: torch.tensor([k % 2 == 0, True]) for k, gate in enumerate(gates)}
    found = block_shares(network, opened)
    assert list(found) == NAMES
    assert [share.tolist() for share in found.values()] == [[1, 1], [0, 1], [1, 1], [0, 1]]


def test_channel_sets_count_by_how_many_there_are() -> None:
    network = resnet()
    blocks = residual_blocks(network)
    network, logits = recurrent_gates(network, blocks, 4, lean=0.0)
    network = split_blocks(network, blocks, logits, 4).eval()
    opened = {
        gate.name: torch.tensor([gate.settings["column"] == 1, gate.settings["column"] == 3]) for gate in network.gates
    }
    found = block_shares(network, opened)
    assert list(found) == NAMES
    assert [share.tolist() for share in found.values()] == [[0.5, 1]] * 4
