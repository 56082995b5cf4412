"""The process that `latency.Worker` talks to: loads one file, then times it on request. One JSON object a line.

in   {"path", "batch", "length", "threads", "samples", "backend"}    out  {"runtime"} or {"error"}
in   {"seconds", "exit_at"}                                out  {"ms": [...], "resident_bytes"}
"""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from penjing.errors import MissingError, PenjingError
from penjing.runtimes import onnx_session

_Ready = tuple[list[Callable[[], Any]], str, Callable[[int | None], None]]
"""Calls, one a sample; the runtime's name; and a switch that lets every sample leave at one exit."""
OPEN_LENGTH = 64
"""Of dimensions that an ONNX file leaves open, behind the batch, unless told."""
MIN_PASSES, MAX_PASSES, WARM_PASSES = 3, 2000, 5


def main() -> None:
    """Serve until the input ends."""
    order = json.loads(sys.stdin.readline())
    try:
        calls, runtime, leave_at = _LOADERS.get(order["backend"], _artifact)(order)
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
        if exit_at is None:
            network.set_thresholds(stored_thresholds)
        else:
            network.leave_at(exit_at)

    generator = torch.Generator().manual_seed(0)
    if order["samples"]:
        stored = load_file(order["samples"])
        columns = [stored[str(i)] for i in range(len(network.input_shapes))]
        samples = [[column[i : i + 1] for column in columns] for i in range(len(columns[0]))]
    else:
        sizes = dict.fromkeys(network.hints, order["length"]) if order["length"] else None
        samples = [network.random_inputs(order["batch"], generator, sizes=sizes)]

    def call(inputs: list[torch.Tensor]) -> Any:
        with torch.inference_mode():
            return network(*inputs)

    return [partial(call, inputs) for inputs in samples], f"torch {torch.__version__}{how}", leave_at


def _onnxruntime(order: dict[str, Any]) -> _Ready:
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError:
        raise MissingError("bench: ONNX files need onnxruntime. Install it with: pip install 'penjing[onnx]'") from None
    with _explained(order, "ONNX Runtime"):
        try:
            session = onnx_session(order["path"], order["threads"])
        except Exception:  # its own kinds of errors are not public
            session = onnx_session(order["path"], order["threads"], exact=False)
    kinds = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
    feeds = {
        tensor.name: _random(kinds.get(tensor.type, tensor.type[7:-1]), tensor.shape, order)
        for tensor in session.get_inputs()
    }
    return [lambda: session.run(None, feeds)], f"onnxruntime {onnxruntime.__version__}", lambda exit_at: None


def _openvino(order: dict[str, Any]) -> _Ready:
    try:
        import openvino  # noqa: PLC0415
    except ImportError:
        raise MissingError("bench: openvino is missing. Install it with: pip install 'penjing[openvino]'") from None
    in_float32 = "f32"  # or it computes floats in bfloat16
    settings = {"INFERENCE_NUM_THREADS": order["threads"], "INFERENCE_PRECISION_HINT": in_float32}
    with _explained(order, "OpenVINO"):
        compiled = openvino.Core().compile_model(order["path"], "CPU", settings)
    feeds = {}
    for port in compiled.inputs:
        shape = [n.get_length() if n.is_static else None for n in port.partial_shape]
        feeds[port.any_name] = _random(port.element_type.to_dtype().name, shape, order)
    request = compiled.create_infer_request()
    version = openvino.__version__.split("-")[0]
    return [lambda: request.infer(feeds)], f"openvino {version}", lambda exit_at: None


def _executorch(order: dict[str, Any]) -> _Ready:
    import torch  # noqa: PLC0415

    try:
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool  # noqa: PLC0415
        from executorch.runtime import Runtime  # noqa: PLC0415
        from executorch.version import __version__ as version  # noqa: PLC0415
    except ImportError:
        missing = "bench: .pte files need executorch. Install it with: pip install 'penjing[executorch]'"
        raise MissingError(missing) from None
    _unsafe_reset_threadpool(order["threads"])
    with _explained(order, "ExecuTorch"):
        program = Runtime.get().load_program(Path(order["path"]))
        method = program.load_method("forward")
    wanted = [method.metadata.input_tensor_meta(i) for i in range(method.metadata.num_inputs())]
    own_batch = wanted[0].sizes()[0]
    if order["batch"] != own_batch:
        raise PenjingError(
            f"{order['path']}: a call takes {own_batch} samples, got --batch {order['batch']}. "
            f"Write another with penjing export --batch {order['batch']}."
        )
    whole = {3: torch.int32, 4: torch.int64}  # ExecuTorch's numbers for them
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for meta in wanted:
        kind = whole.get(meta.dtype())
        ones_or_normal = (
            torch.ones(meta.sizes(), dtype=kind) if kind else torch.randn(meta.sizes(), generator=generator)
        )
        inputs.append(ones_or_normal)
    return [lambda: method.execute(inputs)], f"executorch {version}", lambda exit_at: None


_LOADERS: dict[str, Callable[[dict[str, Any]], _Ready]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "executorch": _executorch,
}


@contextlib.contextmanager
def _explained(order: dict[str, Any], runtime: str) -> Iterator[None]:
    """A file that is not there or not what it says, in one line."""
    if not Path(order["path"]).is_file():
        raise PenjingError(f"{order['path']}: there is no such file.")
    try:
        yield
    except Exception as error:
        raise PenjingError(f"{order['path']}: {runtime} cannot load it ({str(error).splitlines()[0]}).") from None


def _random(kind: str, shape: Sequence[Any], order: dict[str, Any]) -> Any:
    """An input: normal numbers, or ones where whole numbers are wanted, which words, marks and lengths all may be."""
    import numpy as np  # noqa: PLC0415

    open_sizes = [order["batch"], *[order["length"] or OPEN_LENGTH] * len(shape)]
    sizes = [own if isinstance(own, int) else other for own, other in zip(shape, open_sizes, strict=False)]
    if kind.startswith("float"):
        return np.random.default_rng(0).standard_normal(sizes).astype(kind)
    return np.ones(sizes, kind)


def _answer(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
