"""The sensitivity scan against pruning by hand."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.measurement import answer
from penjing.pruning import apply_masks_, choose_masks, sensitivity_scan
from penjing.pruning.scan import SensitivityScan
from penjing.sensitivity import layer_weights
from penjing.training import Metric, Task


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), (torch.randn(2, 6),)).eval()


@pytest.fixture
def task(network: Network) -> Task:
    x = torch.randn(200, 6)
    data = TensorDataset(x, network(x).argmax(1))  # the network is always right
    return Task(DataLoader(data, batch_size=64), DataLoader(data, batch_size=64))


def test_each_layer_alone_as_by_hand(network: Network, task: Task) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    scan = sensitivity_scan(network, task, sparsities=(0.9, 0.0, 0.5))
    assert scan.sparsities == (0.0, 0.5, 0.9) and scan.baseline == 1.0
    assert list(scan.values) == ["0.weight", "2.weight"]
    for name, sparsity, value, drop in scan.rows():
        pruned = copy.deepcopy(network)
        apply_masks_(pruned, choose_masks({name: layer_weights(network)[name].abs()}, sparsity).masks)
        answers = answer(pruned, task, task.valid)
        assert value == float((answers.logits.argmax(1) == answers.labels).double().mean())
        assert drop == pytest.approx(1 - value)
    assert all(values[0] == 1.0 > values[2] for values in scan.values.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_masks_already_there_stay(network: Network, task: Task) -> None:
    masks = choose_masks({name: w.abs() for name, w in layer_weights(network).items()}, 0.5).masks
    pruned = copy.deepcopy(network)
    apply_masks_(pruned, masks)
    scan = sensitivity_scan(pruned, task, sparsities=(0.2,))
    assert {values[0] for values in scan.values.values()} == {scan.baseline}  # half is gone already


def test_amounts_are_the_largest_that_lose_little_enough() -> None:
    values = {"a": (0.9, 0.88, 0.7), "b": (0.5, 0.5, 0.5), "c": (0.9, 0.95, 0.9)}
    scan = SensitivityScan("accuracy", True, "magnitude", 0.9, (0.2, 0.5, 0.8), values)
    assert scan.amounts(0.03) == {"a": 0.5, "b": 0.0, "c": 0.8}
    errors = SensitivityScan("error", False, "magnitude", 0.1, (0.2, 0.5), {"a": (0.11, 0.3)})
    assert errors.drops("a") == pytest.approx((0.01, 0.2))
    assert errors.amounts(0.02) == {"a": 0.2}


def test_any_metric_and_score(network: Network, task: Task) -> None:
    metric = Metric("error", lambda answers, labels: (answers.argmax(1) != labels).double(), higher_is_better=False)
    other = Task(task.train, task.valid, metric=metric)
    scan = sensitivity_scan(network, other, sparsities=(0.9,), score="lamp", layers=("2",))
    assert list(scan.values) == ["2.weight"] and scan.drops("2.weight")[0] > 0 and scan.baseline == 0
    with pytest.raises(SettingError, match=r"give Evidence\(batches="):
        sensitivity_scan(network, task, score="wanda")
    with pytest.raises(SettingError, match='scan: score: there is no score "lmp"; did you mean "lamp"'):
        sensitivity_scan(network, task, score="lmp")
    with pytest.raises(SettingError, match=r"scan: sparsities must be in \[0, 1\)"):
        sensitivity_scan(network, task, sparsities=(1.0,))


def test_it_travels_as_json_and_as_a_picture(network: Network, task: Task, tmp_path: Path) -> None:
    scan = sensitivity_scan(network, task, sparsities=(0.5, 0.9))
    assert SensitivityScan.from_json(json.loads(json.dumps(scan.to_json()))) == scan
    assert scan.plot(tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert "weights of the layer that are removed" in scan.plot(tmp_path / "scan.svg").read_text()
    with pytest.raises(SettingError, match=r'ends in ".png" or ".svg", got "scan.pdf"'):
        scan.plot(tmp_path / "scan.pdf")
