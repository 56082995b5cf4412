"""ONNX, compared with PyTorch output by output in ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import MissingError, RunError, SettingError
from penjing.files import write_atomically
from penjing.graph import Network
from penjing.graph.sizes import Size
from penjing.representation import plain

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path, size_bytes: the ONNX file.
        outputs: names of its outputs.
        largest_difference: between ONNX Runtime and PyTorch, over all outputs, relative to the largest value.
    """

    path: Path
    size_bytes: int
    outputs: tuple[str, ...]
    largest_difference: float


class _Static(nn.Module):
    """A network whose samples all go the same way."""

    def __init__(self, network: Network, answers: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.answers = network, answers

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.network.all_answers(*inputs)
        return tuple(found[k] for k in self.answers)


def _free(shape: tuple[int | Size, ...]) -> dict[int, Any]:
    """The dimensions of an input that may have any size: the batch, and the lengths that the network leaves open."""
    free = {0: torch.export.Dim.AUTO}
    return free | {dim: torch.export.Dim.AUTO for dim, size in enumerate(shape, start=1) if isinstance(size, Size)}


def export_onnx(network: Network, path: str | Path, *, exit_at: int | None = None) -> Export:
    """Write a network as ONNX, with a batch dimension of any size, and compare.

    A network with exits becomes a static graph: all answers are computed and are outputs exit_0, exit_1 ..., final, and the
    caller compares confidences; with `exit_at` only what that one answer needs.
    Args:
        exit_at: write one answer only: the number of an exit, or the number of exits for the final one.
    Raises: MissingError: onnx, onnxscript or onnxruntime is not installed. SettingError: no such exit.
        RunError: it cannot be written, or ONNX Runtime answers differently; then no file is left behind.
    """
    try:
        import onnx  # noqa: F401, PLC0415  optional dependency
        import onnxruntime  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingError(f"export: {error.name} is missing. Install it with: pip install 'penjing[onnx]'") from None
    n_exits = len(network.exits)
    if exit_at is not None and not 0 <= exit_at <= n_exits:
        raise SettingError(
            f"export: there is no exit {exit_at}; exits are 0 to {n_exits - 1}, {n_exits} is the final answer."
        )
    answers = tuple(range(n_exits + 1)) if exit_at is None else (exit_at,)
    names = tuple("final" if k == n_exits else f"exit_{k}" for k in answers)
    static = _Static(plain(network).cpu().eval(), answers)
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(network.random_inputs(3, generator))
    input_names = [node.name for node in network.nodes if node.op == "input"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every optional package that is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            static,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=input_names,
            output_names=list(names),
            dynamic_shapes=(tuple(_free(shape) for shape in network.input_shapes),),
        )
    assert program is not None
    content = program.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for n in (3, 1):
        feeds = {node.name: x[:n].numpy() for node, x in zip(session.get_inputs(), inputs, strict=True)}
        with torch.no_grad():
            expected = static(*(x[:n] for x in inputs))
        for found, wanted in zip(session.run(None, feeds), expected, strict=True):
            scale = float(wanted.abs().max()) or 1.0
            worst = max(worst, float((torch.from_numpy(found) - wanted).abs().max()) / scale)
    if not worst <= TOLERANCE:
        raise RunError(
            f"export: ONNX Runtime differs from PyTorch by {worst:.2g} relative (at most {TOLERANCE:g}); nothing was written."
        )
    write_atomically(Path(path), content)
    return Export(Path(path), len(content), names, worst)
