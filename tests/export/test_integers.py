"""Networks with quantized activations become integer arithmetic, and ONNX Runtime answers as PyTorch does."""

import collections
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from penjing.dynamic import EarlyExits
from penjing.errors import RunError
from penjing.export import export_onnx, static
from penjing.graph import Network, trace
from penjing.quantization import Quantize
from penjing.training import Batch, Task, Workbench

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def test_integers_answer_as_the_simulation_does(trained: tuple[Network, Task], tmp_path: Path) -> None:
    network, task = trained
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    Quantize(activations=8).apply(bench)
    done = export_onnx(bench.network, tmp_path / "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(done.path), options, providers=["CPUExecutionProvider"])
    count = collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert count["QLinearConv"] == 2 and count["Conv"] == 0, "convolutions compute in integers"
    assert count["QGemm"] + count["MatMulIntegerToFloat"] + count["QLinearMatMul"] == 1
    kinds = {tensor.data_type for tensor in onnx.load(done.path).graph.initializer}
    assert {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32} <= kinds
    agree = n = right = dense_right = 0
    assert task.test is not None
    for batch in task.batches(task.test):
        (answers,) = session.run(None, {session.get_inputs()[0].name: batch.args[0].numpy()})
        found = torch.from_numpy(answers).argmax(1)
        with torch.no_grad():
            agree += int((found == bench.network(*batch.args).argmax(1)).sum())
            dense_right += int((network(*batch.args).argmax(1) == batch.labels).sum())
        right += int((found == batch.labels).sum())
        n += len(found)
    assert agree >= 0.995 * n
    assert right >= dense_right - 0.02 * n


def test_exits_are_outputs_of_integer_arithmetic_too(trained: tuple[Network, Task], tmp_path: Path) -> None:
    network, task = trained
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    EarlyExits(exits=1, epochs=1).apply(bench)
    Quantize(activations=8).apply(bench)
    done = export_onnx(bench.network, tmp_path / "exits.onnx")
    assert done.outputs == ("exit_0", "final")
    assert export_onnx(bench.network, tmp_path / "first.onnx", exit_at=0).size_bytes < done.size_bytes


def test_weights_without_codes_stay_floats(trained: tuple[Network, Task], tmp_path: Path) -> None:
    network, task = trained
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    Quantize(activations=8, layers={"4": 16}, per="group", group_size=3).apply(bench)
    done = export_onnx(bench.network, tmp_path / "mixed.onnx")
    assert onnx.TensorProto.FLOAT in {tensor.data_type for tensor in onnx.load(done.path).graph.initializer}


def test_a_linear_layer_of_tokens(tokens: Network, tmp_path: Path) -> None:
    assert export_onnx(tokens, tmp_path / "tokens.onnx").largest_difference < 0.05


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_answers_that_are_no_numbers_never_agree(tokens: Network, wrong: float) -> None:
    begun = static.start(tokens, None, n_samples=2)
    found = begun.static(*begun.inputs.values())[0].detach().clone()
    assert begun.difference([found]) == 0
    found[0, 0, 0] = wrong
    assert begun.difference([found]) == float("inf") > begun.tolerance


def test_rows_of_an_embedding_stay_codes_until_they_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(500, 32), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 16))
    ids = torch.randint(0, 500, (64, 7))
    task = Task([Batch((ids,), {}, ids)], [Batch((ids,), {}, ids)], loss=lambda y, _: y.square().mean())  # type: ignore[arg-type]
    bench = Workbench(trace(model, (ids[:2],)), task, accelerator=Accelerator(cpu=True))
    Quantize(activations=8).apply(bench)
    places = [node for node in bench.network.nodes if node.op == "fake_quantize"]
    assert len(places) == 2, "in front of both linear layers; indices are not numbers"
    done = export_onnx(bench.network, tmp_path / "ids.onnx")
    assert done.largest_difference < 0.05
    kinds = {(tensor.data_type, *tensor.dims) for tensor in onnx.load(done.path).graph.initializer}
    assert (onnx.TensorProto.INT8, 500, 32) in kinds and (onnx.TensorProto.FLOAT, 500, 32) not in kinds


def test_a_runtime_that_answers_otherwise_leaves_no_file(
    trained: tuple[Network, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, task = trained
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    Quantize(activations=8).apply(bench)
    monkeypatch.setattr(static, "INTEGER_TOLERANCE", -100.0)
    with pytest.raises(RunError, match="nothing was written"):
        export_onnx(bench.network, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()
