"""Networks with quantized activations become integer arithmetic, and ONNX Runtime answers as PyTorch does."""

import collections
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from penjing.artifact import decode, encode
from penjing.dynamic import EarlyExits, Slimmable
from penjing.errors import RunError
from penjing.export import export_onnx, static
from penjing.export import onnx as onnx_module
from penjing.export.integers import _in_whole_numbers
from penjing.graph import Network, trace
from penjing.measurement import bench as time_files
from penjing.models import resnet_cifar
from penjing.quantization import Quantize
from penjing.quantization.uniform import Scheme, quantize_
from penjing.training import Batch, Task, Workbench

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def _operations(path: Path, folder: Path) -> collections.Counter[str]:
    """What ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_integers_answer_as_the_simulation_does(trained: tuple[Network, Task], tmp_path: Path) -> None:
    network, task = trained
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    Quantize(activations=8).apply(bench)
    done = export_onnx(bench.network, tmp_path / "int8.onnx")
    count = _operations(done.path, tmp_path)
    assert count["QLinearConv"] == 2 and count["Conv"] == 0, "convolutions compute in integers"
    assert count["QGemm"] + count["MatMulIntegerToFloat"] + count["QLinearMatMul"] == 1
    kinds = {tensor.data_type for tensor in onnx.load(done.path).graph.initializer}
    assert {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32} <= kinds
    agree = n = right = dense_right = 0
    assert task.test is not None
    for batch in task.batches(task.test):
        (answers,) = onnx_module.run_onnx(done.path.read_bytes(), [batch.args[0]])
        found = answers.argmax(1)
        with torch.no_grad():
            agree += int((found == bench.network(*batch.args).argmax(1)).sum())
            dense_right += int((network(*batch.args).argmax(1) == batch.labels).sum())
        right += int((found == batch.labels).sum())
        n += len(found)
    assert agree >= 0.995 * n
    assert right >= dense_right - 0.02 * n


def test_sums_of_8_bit_products_are_exact_on_any_processor() -> None:
    """64 products of the largest 8-bit numbers; pairs of them in 16 bits would be cut off at 32,767."""
    n, largest, most = 64, 255, 127
    helper, kinds = onnx.helper, onnx.TensorProto
    weight = helper.make_tensor("weight", kinds.INT8, [n, 16], bytes([most]) * n * 16, raw=True)
    x = helper.make_tensor_value_info("x", kinds.UINT8, [1, n])
    y = helper.make_tensor_value_info("y", kinds.INT32, [1, 16])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "weight"], ["y"])], "sum", [x], [y], [weight])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    (found,) = onnx_module.run_onnx(content, [torch.full((1, n), largest, dtype=torch.uint8)])
    assert torch.equal(found, torch.full((1, 16), n * largest * most, dtype=torch.int32))


def test_every_weight_has_zero_points_of_its_own(tmp_path: Path) -> None:
    """Layers of the same width, whose zero points torch would write once."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 16, 16)
    batches = [Batch((x,), {}, torch.arange(8))]
    task = Task(batches, batches)  # type: ignore[arg-type]
    bench = Workbench(trace(resnet_cifar(8, width=4), (x,)), task, accelerator=Accelerator(cpu=True))
    Quantize(activations=8, epochs=0).apply(bench)
    graph = onnx.load(export_onnx(bench.network, tmp_path / "own.onnx").path).graph
    held = {tensor.name for tensor in graph.initializer}
    zeros = [
        n.input[2] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held and len(n.input) > 2
    ]
    assert len(zeros) >= 14 and len(set(zeros)) == len(zeros) and set(zeros) <= held


def test_files_of_others_whose_weights_share_zero_points_are_timed(tmp_path: Path) -> None:
    """Some processors cannot load them with exact integers; they are timed as they are."""
    helper, kinds = onnx.helper, onnx.TensorProto
    x = helper.make_tensor_value_info("x", kinds.FLOAT, [1, 32])
    y = helper.make_tensor_value_info("y", kinds.FLOAT, [1, 32])
    held = [
        helper.make_tensor("step", kinds.FLOAT, [], [0.1]),
        helper.make_tensor("middle", kinds.UINT8, [], [128]),
        helper.make_tensor("zeros", kinds.INT8, [32], [0] * 32),
        helper.make_tensor("steps", kinds.FLOAT, [32], [0.1] * 32),
    ]
    nodes, source = [], "x"
    for k in range(2):
        held.append(helper.make_tensor(f"weight{k}", kinds.INT8, [32, 32], [127] * 1024))
        nodes += [
            helper.make_node("QuantizeLinear", [source, "step", "middle"], [f"codes{k}"]),
            helper.make_node("DequantizeLinear", [f"codes{k}", "step", "middle"], [f"x{k}"]),
            helper.make_node("DequantizeLinear", [f"weight{k}", "steps", "zeros"], [f"w{k}"], axis=1),
            helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"product{k}"]),
            helper.make_node("QuantizeLinear", [f"product{k}", "step", "middle"], [f"out{k}"]),
            helper.make_node("DequantizeLinear", [f"out{k}", "step", "middle"], [f"y{k}" if k == 0 else "y"]),
        ]
        source = "y0"
    graph = helper.make_graph(nodes, "shared", [x], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "shared.onnx")
    (timing,) = time_files([tmp_path / "shared.onnx"], rounds=1, seconds=0.01)
    assert timing.latency_ms.median > 0


def test_exits_are_outputs_of_integer_arithmetic_too(trained: tuple[Network, Task], tmp_path: Path) -> None:
    network, task = trained
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    EarlyExits(exits=1, epochs=1).apply(bench)
    Quantize(activations=8).apply(bench)
    done = export_onnx(bench.network, tmp_path / "exits.onnx")
    assert done.outputs == ("exit_0", "final")
    assert export_onnx(bench.network, tmp_path / "first.onnx", exit_at=0).size_bytes < done.size_bytes


def test_every_width_of_a_file_computes_in_integers(trained: tuple[Network, Task], tmp_path: Path) -> None:
    _, task = trained
    torch.manual_seed(0)
    network = trace(resnet_cifar(8, width=8, channels=1), task.example().args)
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    Slimmable(widths=(0.5, 1.0), epochs=3, lr=0.01).apply(bench)
    in_floats = bench.network
    Quantize(activations=8).apply(bench)
    held = decode(encode(bench.network), for_training=True)
    assert len(encode(bench.network)) < 0.4 * len(encode(in_floats))
    for k in range(2):
        done = export_onnx(held, tmp_path / f"{k}.onnx", exit_at=k)
        assert _operations(done.path, tmp_path) >= collections.Counter(QLinearConv=7, QGemm=1, QLinearAdd=3)
        assert _operations(done.path, tmp_path)["Conv"] == 0
        held_in_floats = [t for t in onnx.load(done.path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        assert max(len(t.dims) for t in held_in_floats) < 2, "weights are codes"
        agree = n = 0
        for batch in task.batches(task.valid):
            (found,) = onnx_module.run_onnx(done.path.read_bytes(), [batch.args[0]])
            with torch.no_grad():
                agree += int((found.argmax(1) == in_floats.eval().all_answers(*batch.args)[k].argmax(1)).sum())
            n += len(found)
        assert agree >= 0.97 * n


def test_a_batch_norm_behind_is_multiplied_in_whatever_its_signs() -> None:
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, -3.0]))
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    quantize_(layer, "weight", Scheme(8))
    x = torch.randint(0, 256, (2, 3, 8, 8)) * 0.01
    found = _in_whole_numbers(layer, 0.01, norm)
    assert found is not None and found.bias is not None and bool((found.scales > 0).all())
    weight = found.codes.double() * found.scales.double()[:, None, None, None]
    answer = nn.functional.conv2d(x.double(), weight, found.bias.double() * found.sums.double())
    with torch.no_grad():
        expected = norm(layer(x)).double()
    assert float((answer - expected).abs().max()) < 0.51 * float(found.sums.max()) + 1e-5
    with torch.no_grad():
        norm.weight[0] = 0.0
    assert _in_whole_numbers(layer, 0.01, norm) is None  # no step holds it: norm and layer stay apart
    assert _in_whole_numbers(layer, 0.01) is not None


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
