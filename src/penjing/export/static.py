"""What every exporter starts from: a network of plain tensors whose samples all go the same way, and how answers compare."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from penjing.errors import RunError, SettingError
from penjing.files import write_atomically
from penjing.graph import Network, cut_out
from penjing.graph.network import MODULE, module_at, set_module, set_tensor, tensor_at
from penjing.representation import plain

TOLERANCE = 1e-4
INTEGER_TOLERANCE = 0.1
"""For integer arithmetic: where a sum lies between two codes, runtimes round one way or the other, and layers behind go on. In
deep networks that grows to what rounding activations does anyway, so as much again is allowed."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path, size_bytes: the file.
        outputs: names of its outputs.
        runtime: what ran it, to compare.
        largest_difference: between that and PyTorch, over all outputs, relative to the largest value.
        in_integers: it computes in integers where activations are quantized.
    """

    path: Path
    size_bytes: int
    outputs: tuple[str, ...]
    runtime: str
    largest_difference: float
    in_integers: bool = False


class Static(nn.Module):
    """All answers of a network that are wanted, in order; no sample leaves early."""

    def __init__(self, network: Network, answers: Sequence[int]) -> None:
        super().__init__()
        self.network, self.answers = network, tuple(answers)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.network.all_answers(*inputs)
        return tuple(found[k] for k in self.answers)


@dataclass(frozen=True)
class Start:
    """A network made ready to be written.

    Attributes:
        network: the one given, with its representations.
        dense: plain float32 tensors on the processor, for evaluation.
        static: its answers.
        outputs: their names: exit_0, exit_1 ..., final.
        inputs: random samples, by name.
        in_integers: activations are quantized.
    """

    network: Network
    dense: Network
    static: Static
    outputs: tuple[str, ...]
    inputs: dict[str, Tensor]
    in_integers: bool

    def difference(self, found: Sequence[Tensor]) -> float:
        """How far a runtime's answers to the first samples, or all, are from PyTorch's, relative to the largest of those.

        Infinite where an answer is not a finite number.
        """
        expected = self.answers(len(found[0]))
        return max(relative(own, wanted) for own, wanted in zip(found, expected, strict=True))

    def answers(self, n: int | None = None) -> tuple[Tensor, ...]:
        """PyTorch's answers to the first n samples, or all."""
        with torch.no_grad():
            found: tuple[Tensor, ...] = self.static(*(x[:n] for x in self.inputs.values()))
        return found

    @cached_property
    def tolerance(self) -> float:
        """How much a runtime may differ: by as much again as rounding activations changes answers, where it does, at most 1."""
        if not self.in_integers:
            return TOLERANCE
        in_floats = {node.name: _unchanged for node in self.dense.nodes if node.op == "fake_quantize"}
        with torch.no_grad(), self.dense.replaced(in_floats):
            answers = self.static(*self.inputs.values())
        return INTEGER_TOLERANCE + min(self.difference(answers), 1.0)

    def keep(self, path: str | Path, content: bytes, runtime: str, difference: float) -> Export:
        """Write a file whose answers have been compared. Raises: RunError: they differ by too much; nothing is written."""
        if not difference <= self.tolerance:
            raise RunError(
                f"export: {runtime} differs from PyTorch by {difference:.2g} relative (at most {self.tolerance:g}); "
                "nothing was written."
            )
        write_atomically(Path(path), content)
        return Export(Path(path), len(content), self.outputs, runtime, difference, self.in_integers)

    def copy_of_dense(self) -> Network:
        """A network to write into, which shares nothing with the one that is compared with."""
        return copy.deepcopy(self.dense)


def relative(own: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number wanted; infinite where an answer is not a finite number."""
    gap = float((own - wanted).abs().max()) / (float(wanted.abs().max()) or 1.0)
    return gap if math.isfinite(gap) else math.inf


def _unchanged(x: Tensor) -> Tensor:
    return x


def start(network: Network, exit_at: int | None, n_samples: int, length: int | None = None) -> Start:
    """Make a network ready, with inputs of this length where it leaves that open. Raises: SettingError: no such exit."""
    n_exits = len(network.exits)
    if exit_at is not None and not 0 <= exit_at <= n_exits:
        exits = f"exits are 0 to {n_exits - 1}, {n_exits} is the final answer" if n_exits else "0 is the only answer"
        raise SettingError(f"export: there is no exit {exit_at}; {exits}.")
    answers = tuple(range(n_exits + 1)) if exit_at is None else (exit_at,)
    outputs = tuple("final" if k == n_exits else f"exit_{k}" for k in answers)
    if exit_at is not None and n_exits:
        network, answers = cut_out(network, exit_at), (0,)
    dense = _apart(plain(network).cpu().eval())
    sizes = dict.fromkeys(network.hints, length) if length else None
    random = network.random_inputs(n_samples, torch.Generator().manual_seed(0), sizes=sizes)
    return Start(
        network,
        dense,
        Static(dense, answers),
        outputs,
        dict(zip((node.name for node in network.nodes if node.op == "input"), random, strict=True)),
        any(node.op == "fake_quantize" for node in network.nodes),
    )


def _apart(network: Network) -> Network:
    """Layers and tensors that are called like something of `Network` itself ("exits") get other names, in place.

    `torch.export` looks them up as attributes.
    """
    taken = {node.path.partition(".")[0] for node in network.nodes if node.path} & set(dir(Network))
    nodes = []
    for node in network.nodes:
        first, _, rest = node.path.partition(".")
        if first in taken:
            path = f"own_{first}.{rest}" if rest else f"own_{first}"
            if node.op == MODULE:
                set_module(network, path, module_at(network, node.path))
            else:
                set_tensor(network, path, tensor_at(network, node.path))
            node = replace(node, path=path)
        nodes.append(node)
    for name in taken:
        network._modules.pop(name, None)
    network.nodes = nodes
    return network
