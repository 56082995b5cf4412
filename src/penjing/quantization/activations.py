"""What layers take and give as 8-bit integers: surgery for networks that compute in whole numbers.

    x ── quantize ── convolution ── ReLU ── quantize ──┬── convolution ── quantize ── add ── ReLU ── quantize ── ...
                                                       └─────────────────────────────┘

A layer computes in integers where what it takes and what it gives are integers. So a result is quantized

- where a layer with quantized weights reads it,
- behind a convolution, or behind the batch norm and the ReLU that alone read it: a norm is a scale and a shift of each row's
  sums, which exporters multiply into steps and biases, and a ReLU nothing but the lower end of the range,
- behind a sum, a concatenation or a mean of quantized results, the same way.

What only moves numbers (pooling the largest, reshaping, padding with zeros) keeps the grid of what it moves. What a linear
layer gives stays as it is: its sums are taken in integers anyway, and softmax and norms want floats. A narrower self of a
network, which reads slices of a layer's weight, counts as that layer.

Source: Jacob et al. 2018, arXiv:1712.05877, sections 2 and 3; where to quantize, ONNX Runtime's rules for fusing.
"""

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from penjing.errors import DataError, SettingError
from penjing.graph import Network, Node
from penjing.graph.network import MODULE, TENSOR, word_of
from penjing.quantization.uniform import Range
from penjing.representation import Grid, representations
from penjing.training import Batch

LEVELS = 255
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
_BATCH_NORMS = ("batchnorm1d", "batchnorm2d", "batchnorm3d")
_TABLES = ("embedding", "embeddingbag")  # they read indices, not numbers
_MOVES = ("flatten", "reshape", "permute", "slice", "pad", "identity", "dropout", "dropout2d")
_LARGEST = ("max_pool", "maxpool1d", "maxpool2d", "maxpool3d", "adaptive_max_pool")
_JOINS = ("add", "concat")
_MEANS = ("avg_pool", "adaptive_avg_pool", "avgpool2d", "adaptiveavgpool2d", "mean")
_RECTIFIERS = ("relu", "relu6")
_BINS = 2048
_SHRINKS = [1 - k / 64 for k in range(56)]


def quantize_activations(
    network: Network,
    layers: Collection[str],
    batches: Iterable[Batch],
    *,
    range: Range = "mse",
    percentile: float = 99.9,
) -> Network:
    """A network that computes with 8-bit results around these layers.

        x' = step (clip(round(x / step) + zero, 0, 255) - zero),   step = (high - low) / 255,   zero = round(-low / step)

    Args:
        layers: paths of those with quantized weights.
        batches: inputs, of which only the values are looked at.
        range: what low ... high is: all values ("min-max"), all but the outermost ("percentile", in percent, shared by both
            ends), or what makes the squared error least ("mse", on a histogram of 2048 bins). It always holds 0.
    Returns: a copy with `fake_quantize` nodes and biases as `round_biases_` leaves them; `export.export_onnx` makes integers of
        them.
    Raises: DataError: no batches, or results that are not finite.
    """
    kept = list(batches)
    if not kept:
        raise DataError("quantize: there are no samples to find the ranges of activations on; check the loader.")
    places = quantized_places(network, layers)
    grids = {
        name: found.grid(range, percentile)
        for name, found in _histograms(network, [name for name, moved in places.items() if moved is None], kept).items()
    }
    changed: list[Node] = []
    renamed: dict[str, str] = {}
    for node in network.nodes:
        changed.append(replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)))
        if node.name in places:
            source = node.name
            while (moved := places[source]) is not None:
                source = moved
            step, zero = grids[source]
            own = network.fresh_name(f"{node.name}_quantized")
            changed.append(Node(own, "fake_quantize", (node.name,), settings={"step": step, "zero": zero}))
            renamed[node.name] = own
    network = copy.deepcopy(network)
    network.nodes = changed
    round_biases_(network)
    return network


def integer_biases(network: Network) -> set[str]:
    """The full names of biases that are added to sums of integers: of layers that take what is quantized."""
    steps = {node.name for node in network.nodes if node.op == "fake_quantize"}
    return {f"{node.path}.bias" for node in network.nodes if node.op == MODULE and node.inputs[0] in steps}


def round_biases_(network: Network) -> None:
    """Make biases whole numbers in units of both steps, as sums of products are, in place; they stay float32.

    b' = round(b / (step of inputs * step of the row)) * step of inputs * step of the row.  Weights must be on grids with a step
    a row, or one; other layers keep their biases.
    Raises: SettingError: a bias has codes of its own.
    """
    steps = {node.name: node.settings["step"] for node in network.nodes if node.op == "fake_quantize"}
    for node in network.nodes:
        layer: Any = network.get_submodule(node.path) if node.op == MODULE and node.inputs[0] in steps else None
        stack = representations(layer, "weight") if layer is not None else []
        if not stack or not isinstance(stack[-1], Grid) or set(stack[-1].steps.shape[1:]) - {1}:
            continue
        if getattr(layer, "bias", None) is None:
            continue
        if representations(layer, "bias"):
            raise SettingError(
                f'quantize: the bias of "{node.path}" has codes of its own; quantize activations before biases.'
            )
        unit = stack[-1].stored_steps().detach().double().flatten() * steps[node.inputs[0]]
        bias = (torch.round(layer.bias.detach().double() / unit) * unit).float()
        with torch.no_grad():
            layer.bias.copy_(bias)


def quantized_places(network: Network, layers: Collection[str]) -> dict[str, str | None]:
    """The nodes whose results are quantized, in order; where one only moves a quantized result, that one's name."""
    nodes = {node.name: node for node in network.nodes}
    found: dict[str, str | None] = {}

    def moves(name: str) -> bool:
        word = word_of(network, nodes[name])
        return word in _LARGEST or (word in _MOVES and not nodes[name].settings.get("value"))

    def is_quantized(name: str) -> bool:
        return name in found or (moves(name) and is_quantized(nodes[name].inputs[0]))

    def mark(name: str) -> None:
        if name not in found:
            source = nodes[name].inputs[0] if moves(name) else None
            if source is not None:
                mark(source)
            found[name] = source

    for node in network.nodes:
        word = word_of(network, node)
        if _layer_of(node, nodes) in layers and word not in _TABLES:
            mark(node.inputs[0])
            if word in _CONVOLUTIONS:
                mark(_behind(network, _normed(network, node)))
        joins = (word in _JOINS and len(node.inputs) > 1) or word in _MEANS
        if joins and all(is_quantized(name) for name in node.inputs):
            for name in node.inputs:
                mark(name)
            mark(_behind(network, node))
    return {node.name: found[node.name] for node in network.nodes if node.name in found}


def _layer_of(node: Node, nodes: Mapping[str, Node]) -> str:
    """The path of the layer that a node calls, or of whose weight it reads a part; "" for other nodes."""
    if node.op == MODULE:
        return node.path
    if node.op not in ("convolution", "linear"):
        return ""
    source = nodes[node.inputs[1]]
    while source.op in ("slice", "concat"):
        source = nodes[source.inputs[0]]
    return source.path.rpartition(".")[0] if source.op == TENSOR else ""


def _normed(network: Network, node: Node) -> Node:
    """The batch norm that alone reads a result, else the node itself."""
    readers = network.consumers(node.name)
    return readers[0] if len(readers) == 1 and word_of(network, readers[0]) in _BATCH_NORMS else node


def _behind(network: Network, node: Node) -> str:
    """The ReLU that alone reads a result, else the node itself."""
    readers = network.consumers(node.name)
    if len(readers) == 1 and word_of(network, readers[0]) in _RECTIFIERS:
        return readers[0].name
    return node.name


@dataclass
class _Histogram:
    low: float
    high: float
    counts: Tensor | None = None

    def count(self, values: Tensor) -> None:
        found = torch.histc(values.float().cpu(), _BINS, self.low, self.high).double()
        self.counts = found if self.counts is None else self.counts + found

    def grid(self, how: Range, percentile: float) -> tuple[float, int]:
        """Step and zero."""
        assert self.counts is not None
        low, high = self.low, self.high
        if high == low:
            return 1.0, 0
        centres = torch.linspace(low, high, 2 * _BINS + 1, dtype=torch.float64)[1::2]
        if how == "percentile":
            share = self.counts.cumsum(0) / self.counts.sum()
            outside = (100 - percentile) / 200
            low = min(float(centres[share > outside][0]), 0.0) if low < 0 else low
            high = max(float(centres[share < 1 - outside][-1]), 0.0) if bool((share < 1 - outside).any()) else high
        elif how == "mse":
            candidates = [_grid(low * shrink, high * shrink) for shrink in _SHRINKS]
            return min(candidates, key=lambda grid: self._error(centres, *grid))
        return _grid(low, high)

    def _error(self, centres: Tensor, step: float, zero: int) -> float:
        assert self.counts is not None
        rounded = (torch.clamp(torch.round(centres / step) + zero, 0, LEVELS) - zero) * step
        return float((self.counts * (rounded - centres).square()).sum())


def _grid(low: float, high: float) -> tuple[float, int]:
    """The step, a float32 number, and the code of 0.0 for a range that holds 0."""
    step = float(torch.tensor((max(high, 0.0) - min(low, 0.0)) / LEVELS, dtype=torch.float32).clamp_min(1e-30))
    return step, min(max(round(-min(low, 0.0) / step), 0), LEVELS)


def _histograms(network: Network, names: list[str], batches: list[Batch]) -> dict[str, _Histogram]:
    """Of the results of these nodes over all samples."""
    found = {name: _Histogram(0.0, 0.0) for name in names}
    for counting in (False, True):
        for batch in batches:
            for name, value in _results(network, batch, found):
                own = found[name]
                if counting:
                    own.count(value)
                    continue
                if not bool(torch.isfinite(value).all()):
                    raise DataError(f'quantize: the result of "{name}" is not finite on some samples.')
                own.low, own.high = min(own.low, float(value.min())), max(own.high, float(value.max()))
    return found


def _results(network: Network, batch: Batch, names: Collection[str]) -> Iterable[tuple[str, Tensor]]:
    values, sizes = network.bind(batch.args, batch.kwargs)
    with torch.no_grad():
        yield from ((name, value) for name, value in list(values.items()) if name in names)
        for node, value in network.steps(values, sizes):
            if node.name in names:
                yield node.name, value
