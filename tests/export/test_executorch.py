"""Programs for ExecuTorch answer as PyTorch does, in floats and in integers."""

import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from penjing.dynamic import EarlyExits
from penjing.errors import MissingError, RunError, SettingError
from penjing.export import export_executorch, static
from penjing.graph import Network, trace
from penjing.measurement import bench as time_files
from penjing.quantization import Quantize
from penjing.training import Batch, Task, Workbench


def test_without_executorch_it_says_what_to_install(
    trained: tuple[Network, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("executorch", "executorch.backends.xnnpack.partition.xnnpack_partitioner"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingError, match=r"pip install 'penjing\[executorch\]'"):
        export_executorch(trained[0], tmp_path / "x.pte")
    assert not list(tmp_path.iterdir())


def test_a_batch_below_one_is_refused(trained: tuple[Network, Task], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="batch must be at least 1, got 0"):
        export_executorch(trained[0], tmp_path / "x.pte", batch=0)
    with pytest.raises(SettingError, match="takes inputs of one size"):
        export_executorch(trained[0], tmp_path / "x.pte", length=8)


def test_floats(trained: tuple[Network, Task], tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    done = export_executorch(trained[0], tmp_path / "float.pte", batch=3)
    assert done.runtime == "ExecuTorch"
    assert done.largest_difference < 1e-4
    (timing,) = time_files([done.path], batch=3, rounds=1, seconds=0.01)
    assert timing.backend == "executorch"


def test_integers_answer_as_the_simulation_does(trained: tuple[Network, Task], tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    from executorch.runtime import Runtime

    network, task = trained
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    Quantize(activations=8).apply(bench)
    done = export_executorch(bench.network, tmp_path / "int8.pte")
    method = Runtime.get().load_program(done.path).load_method("forward")
    assert task.test is not None
    agree = n = 0
    for batch in task.batches(task.test):
        with torch.no_grad():
            expected = bench.network(*batch.args).argmax(1)
        found = torch.cat([method.execute([x])[0].clone() for x in batch.args[0].split(1)]).argmax(1)
        agree += int((found == expected).sum())
        n += len(found)
    assert agree >= 0.995 * n


def test_weights_are_integers_in_the_file(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 256))
    x = torch.randn(16, 64, 6, 6)
    task = Task([Batch((x,), {}, x)], [Batch((x,), {}, x)], loss=nn.functional.mse_loss)  # type: ignore[arg-type]
    bench = Workbench(trace(model, (x[:2],)), task, accelerator=Accelerator(cpu=True))
    Quantize(activations=8).apply(bench)
    n_weights = 64 * 128 * 9 + 128 * 256
    assert export_executorch(bench.network, tmp_path / "int8.pte").size_bytes < 1.25 * n_weights


def test_a_linear_layer_of_tokens(tokens: Network, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    assert export_executorch(tokens, tmp_path / "tokens.pte").largest_difference < 0.05


def test_exits_are_outputs(trained: tuple[Network, Task], tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    network, task = trained
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    EarlyExits(exits=1, epochs=1).apply(bench)
    done = export_executorch(bench.network, tmp_path / "exits.pte")
    assert done.outputs == ("exit_0", "final")
    assert export_executorch(bench.network, tmp_path / "first.pte", exit_at=0).size_bytes < done.size_bytes


def test_a_runtime_that_answers_otherwise_leaves_no_file(
    trained: tuple[Network, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("executorch")
    monkeypatch.setattr(static, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="nothing was written"):
        export_executorch(trained[0], tmp_path / "x.pte")
    assert not (tmp_path / "x.pte").exists()
