"""Exits as conditions of ONNX, and single answers as plain networks."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from penjing.dynamic import attach_exits, make_slimmable
from penjing.dynamic.blocks import gate_blocks, residual_blocks
from penjing.dynamic.gates import recurrent_gates, with_gates
from penjing.errors import SettingError
from penjing.export import export
from penjing.export.onnx import run_onnx
from penjing.graph import Network, trace
from penjing.graph.node import CONFIDENCES
from penjing.models import resnet_cifar

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    plain = trace(nn.Sequential(*layers), (torch.randn(2, 1, 8, 8),)).eval()
    dynamic = attach_exits(plain, [plain.node_of("2").name, plain.node_of("4").name]).eval()
    for k in range(2):
        with torch.no_grad():
            dynamic.get_submodule(f"exits.{k}").weight.mul_(4)
    return dynamic


@pytest.mark.parametrize("confidence", ["largest", "margin", "entropy"])
def test_exits_are_conditions_and_samples_leave_where_they_do_here(
    network: Network, confidence: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    x = torch.randn(7, 1, 8, 8) * 2
    changed = copy.deepcopy(network).eval()
    changed.nodes = [
        replace(n, settings={**n.settings, "confidence": confidence}) if n.op == "exit" else n for n in changed.nodes
    ]
    with torch.no_grad():
        sure = [CONFIDENCES[confidence](a) for a in changed.all_answers(x)[:2]]
    thresholds = [float(s.sort().values[k]) - 1e-5 for s, k in zip(sure, (4, 2), strict=True)]
    changed.set_thresholds(thresholds)
    done = export(changed, tmp_path / "x.onnx", conditions=True)
    assert done.outputs == ("answer",) and done.largest_difference < 1e-4
    content = (tmp_path / "x.onnx").read_bytes()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    outer = [node.op_type for node in model.graph.node]
    assert outer.count("If") == 1 and outer.count("Conv") == 1  # the others are computed only when somebody goes on
    with torch.no_grad():
        way = changed.route(x)
        assert set(way.left_at.tolist()) == {0, 1, 2}
        torch.testing.assert_close(run_onnx(content, [x])[0], way.answers, rtol=1e-4, atol=1e-5)
        for i in range(7):
            alone = run_onnx(content, [x[i : i + 1]])[0]
            torch.testing.assert_close(alone, way.answers[i : i + 1], rtol=1e-4, atol=1e-5)


def test_what_is_behind_an_exit_is_not_run_when_all_leave(network: Network, tmp_path: Path) -> None:
    """A weight behind the exit that no arithmetic survives: the answer stays finite as long as nobody goes there."""
    changed = copy.deepcopy(network).eval()
    changed.set_thresholds([0.0, 2.0])
    export(changed, tmp_path / "x.onnx", conditions=True)
    model = onnx.load(str(tmp_path / "x.onnx"))
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [8, 8, 3, 3]:
            broken = torch.full(tuple(tensor.dims), float("nan")).numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(broken, tensor.name))
    assert bool(run_onnx(model.SerializeToString(), [torch.randn(2, 1, 8, 8)])[0].isfinite().all())


def test_each_width_and_exit_is_a_plain_network(network: Network, tmp_path: Path) -> None:
    slim = make_slimmable(network, (0.5,)).eval()
    x = torch.randn(3, 1, 8, 8)
    sizes = []
    for k, name in enumerate(slim.answer_names):
        done = export(slim, tmp_path / f"{k}.onnx", exit_at=k)
        model = onnx.load(str(tmp_path / f"{k}.onnx"))
        assert {node.op_type for node in model.graph.node}.isdisjoint({"Slice", "If", "Concat"}), name
        with torch.no_grad():
            expected = slim.all_answers(x)[k]
        torch.testing.assert_close(
            run_onnx((tmp_path / f"{k}.onnx").read_bytes(), [x])[0], expected, rtol=1e-4, atol=1e-5
        )
        sizes.append(done.size_bytes)
    assert sizes[2] < 0.5 * sizes[5]  # the last answer at half of the width


def test_a_network_with_gates_is_written_with_all_of_its_blocks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = trace(resnet_cifar(8, width=4), (torch.randn(2, 3, 32, 32),)).eval()
    blocks = residual_blocks(plain)
    gated, logits = recurrent_gates(plain, blocks, lean=0.0)
    gated, gates = with_gates(gated, [(name, 0) for name in logits])
    gated = gate_blocks(gated, blocks, gates).eval()
    export(gated, tmp_path / "x.onnx")
    x = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(run_onnx((tmp_path / "x.onnx").read_bytes(), [x])[0], gated(x), rtol=1e-4, atol=1e-5)


def test_conditions_need_exits(network: Network, tmp_path: Path) -> None:
    plain = trace(nn.Linear(3, 2), (torch.randn(2, 3),))
    with pytest.raises(SettingError, match="conditions are for a network with exits"):
        export(plain, tmp_path / "x.onnx", conditions=True)
    with pytest.raises(SettingError, match="--leave-early is for ONNX"):
        export(network, tmp_path / "x.pte", conditions=True)
