"""The process that `latency.Worker` talks to: loads one file, then times it on request. One JSON object a line.

in   {"path", "batch", "threads", "samples", "backend"}    out  {"runtime"} or {"error"}
in   {"seconds", "exit_at"}                                out  {"ms": [...], "resident_bytes"}
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from penjing.errors import MissingError, PenjingError

_Ready = tuple[list[Callable[[], Any]], str, Callable[[int | None], None]]
"""Calls, one a sample; the runtime's name; and a switch that lets every sample leave at one exit."""
MIN_PASSES, MAX_PASSES, WARM_PASSES = 3, 2000, 5


def main() -> None:
    """Serve until the input ends."""
    order = json.loads(sys.stdin.readline())
    try:
        calls, runtime, leave_at = _onnx(order) if str(order["path"]).endswith(".onnx") else _artifact(order)
        for _ in range(WARM_PASSES):
            for call in calls:
                call()
    except PenjingError as error:
        _answer({"error": str(error)})
        return
    _answer({"runtime": runtime})
    for line in sys.stdin:
        wanted = json.loads(line)
        leave_at(wanted["exit_at"])
        _answer(_measure(calls, float(wanted["seconds"])))


def _measure(calls: list[Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """Times of one call, each the mean over one pass through the samples, which may differ in how far they go."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < MIN_PASSES or (time.perf_counter() - begun < seconds and len(times) < MAX_PASSES):
        start = time.perf_counter()
        for call in calls:
            call()
        times.append((time.perf_counter() - start) * 1e3 / len(calls))
    return {"ms": times, "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _artifact(order: dict[str, Any]) -> _Ready:
    import torch  # noqa: PLC0415  one runtime a process: the ONNX worker must not load torch
    from safetensors.torch import load_file  # noqa: PLC0415

    from penjing.artifact import load  # noqa: PLC0415
    from penjing.inference import CompressedLayer  # noqa: PLC0415

    torch.set_num_threads(order["threads"])
    network = load(order["path"], backend=order["backend"], batch=order["batch"])
    n_compressed = sum(isinstance(module, CompressedLayer) for module in network.modules())
    how = "" if order["backend"] == "dense" else f", {n_compressed or 'no'} layer{'s' * (n_compressed != 1)} from codes"
    stored_thresholds = network.thresholds

    def leave_at(exit_at: int | None) -> None:
        everybody = [2.0 if k != exit_at else -1.0 for k in range(len(stored_thresholds))]
        network.set_thresholds(stored_thresholds if exit_at is None else everybody)

    generator = torch.Generator().manual_seed(0)
    if order["samples"]:
        stored = load_file(order["samples"])
        columns = [stored[str(i)] for i in range(len(network.input_shapes))]
        samples = [[column[i : i + 1] for column in columns] for i in range(len(columns[0]))]
    else:
        samples = [network.random_inputs(order["batch"], generator)]

    def call(inputs: list[torch.Tensor]) -> Any:
        with torch.inference_mode():
            return network(*inputs)

    return [partial(call, inputs) for inputs in samples], f"torch {torch.__version__}{how}", leave_at


def _onnx(order: dict[str, Any]) -> _Ready:
    try:
        import numpy as np  # noqa: PLC0415
        import onnxruntime  # noqa: PLC0415
    except ImportError:
        raise MissingError("bench: ONNX files need onnxruntime. Install it with: pip install 'penjing[onnx]'") from None
    if not Path(order["path"]).is_file():
        raise PenjingError(f"{order['path']}: there is no such file.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = order["threads"]
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(order["path"], options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise PenjingError(f"{order['path']}: ONNX Runtime cannot load it ({str(error).splitlines()[0]}).") from None
    rng = np.random.default_rng(0)
    feeds = {}
    for tensor in session.get_inputs():
        shape = [order["batch"] if i == 0 or not isinstance(n, int) else n for i, n in enumerate(tensor.shape)]
        feeds[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    return [lambda: session.run(None, feeds)], f"onnxruntime {onnxruntime.__version__}", lambda exit_at: None


def _answer(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
