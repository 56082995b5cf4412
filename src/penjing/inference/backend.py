"""Which layers run from their compressed weights: what is faster on this machine, found by trying.

    weights as codes, masks, signs ── what could run it? ── time each against the dense layer ── the fastest

Nothing of this is stored in a file: another machine decides for itself. A layer stays dense unless something else is at least
a tenth faster. Batch norms behind layers whose weights are plain are multiplied into these: a pass over the map less for each.
Networks of images are tried with channels first and last in memory.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from penjing.graph import Network, Node, fold_batch_norms
from penjing.graph.modules import kind_of
from penjing.graph.network import INPUT, MODULE, needed, node_shapes, set_module, word_of
from penjing.inference.layers import (
    CodebookLinear,
    CompressedLayer,
    SignConv,
    SignLinear,
    SparseConv1x1,
    SparseLinear,
)
from penjing.kernels import codebook
from penjing.representation import Grid, ScaledCodebook, Signs, plain, representations

TOLERANCE = 1e-5
"""How far answers of a kernel may be from those of the dense layer, relative to the largest of them."""
_WORTH_IT = 0.9
_LONG = 0.2
"""Seconds of a call that is not tried often."""
_LEAST_ZEROS = 0.5
_SAME_VALUES = ("flatten", "reshape", "permute", "identity", "dropout", "dropout2d")
_ROUNDS, _SECONDS = 7, 0.002

Layout = Literal["channels first", "channels last"]


@dataclass(frozen=True)
class Choice:
    """How a layer runs.

    Attributes:
        path: of the layer.
        way: "dense", "sparse", "codebook" or "signs".
        why: in words.
        dense_ms, own_ms: medians of one call on random inputs of the layer's shape; None where nothing was tried.
        dense_bytes, own_bytes: of the weight and the bias in memory.
    """

    path: str
    way: str
    why: str
    dense_ms: float | None
    own_ms: float | None
    dense_bytes: int
    own_bytes: int


@dataclass(frozen=True)
class Accelerated:
    """A network with kernels where these are faster.

    Attributes:
        choices: for each layer with a matrix or filters.
        folded: the batch norms that are computed with the layers before them.
        layout: of maps in memory; None: the network is not one of images.
    """

    network: Network
    choices: tuple[Choice, ...]
    folded: tuple[str, ...] = ()
    layout: Layout | None = None


def accelerate(network: Network, *, batch: int = 1) -> Accelerated:
    """A copy of a network that computes with its compressed weights wherever that is faster here.

    Args:
        network: with its representations, as `load(path, for_training=True)` gives it; weights without them are looked at too.
        batch: samples in a call; which way is faster depends on it.
    Returns: the copy, in evaluation mode, and the choices. Answers differ from the dense ones by rounding, at most `TOLERANCE`
        of the largest answer of each layer, not at all where signs are counted, and by that of batch norms multiplied into the
        layers before them (`graph.fold_batch_norms`).
    """
    before = copy.deepcopy(network).cpu().eval()
    network, _ = fold_batch_norms(before)
    folded = tuple(path for path in before.layers() if path not in network.layers())
    shapes = node_shapes(network, batch)
    chosen: dict[str, CompressedLayer] = {}
    choices: list[Choice] = []
    dense = plain(network)
    nodes = {node.name: node for node in network.nodes}
    for path, layer in network.layers().items():
        if kind_of(layer) not in ("Linear", "Conv2d"):
            continue
        calls = [node for node in network.nodes if node.op == MODULE and node.path == path]
        takes_signs = all(_is_signs(nodes, network, node.inputs[0]) for node in calls)
        made, choice = _choose(path, layer, dense.get_submodule(path), shapes[calls[0].inputs[0]], takes_signs)
        choices.append(choice)
        if made is not None:
            chosen[path] = made
    for path, made in chosen.items():
        set_module(dense, path, made)
    _take_unsigned_(dense, chosen)
    _take_rectifiers_(dense, chosen)
    dense = dense.eval()
    shape = _of_images(dense, shapes)
    if shape is None:
        return Accelerated(dense, tuple(choices), folded)
    dense, layout = _faster_layout(dense, shape)
    return Accelerated(dense, tuple(choices), folded, layout)


def _choose(
    path: str, layer: nn.Module, dense: nn.Module, shape: tuple[int, ...], takes_signs: bool
) -> tuple[CompressedLayer | None, Choice]:
    dense_bytes = sum(p.numel() * p.element_size() for p in dense.parameters(recurse=False))

    def stays(why: str, dense_ms: float | None = None, own_ms: float | None = None) -> tuple[None, Choice]:
        return None, Choice(path, "dense", why, dense_ms, own_ms, dense_bytes, dense_bytes)

    weight = dense.weight
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32:
        return stays("kernels take float32")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if takes_signs:
        x = (x >= 0).float() * 2 - 1
    candidates: list[CompressedLayer] = []
    with torch.no_grad():
        expected = dense(x)
        if not expected.numel() or not weight.numel():
            return stays("there is nothing to compute")
        room = TOLERANCE * float(expected.abs().max())
        for made in _candidates(layer, dense, takes_signs):
            if float((made(x) - expected).abs().max()) <= room:
                candidates.append(made)
        if not candidates:
            return stays(_nothing(dense))
        times = _take_turns([lambda: dense(x), *(lambda made=made: made(x) for made in candidates)])
    fastest = min(range(len(candidates)), key=lambda k: times[k + 1])
    own, best = candidates[fastest], times[fastest + 1]
    ratio = times[0] / best
    if best > _WORTH_IT * times[0]:
        return stays(f"{own.way} is {ratio:.2f} x as fast here", times[0], best)
    return own, Choice(path, own.way, f"{ratio:.1f} x as fast here", times[0], best, dense_bytes, own.n_bytes)


def _candidates(layer: nn.Module, dense: nn.Module, takes_signs: bool) -> Iterator[CompressedLayer]:
    """What could compute a layer; `dense` has the same weight without representations."""
    weight: Tensor = dense.weight  # type: ignore[assignment]
    signed = _signed(layer, weight)
    if isinstance(dense, nn.Linear):
        if signed is not None:
            yield SignLinear(dense, *signed, of_signs=takes_signs)
        coded = _coded(layer, weight) if codebook.lanes_here() else None
        if coded is not None and signed is None:
            yield CodebookLinear(dense, *coded)
        if _share_of_zeros(weight) >= _LEAST_ZEROS and weight.shape[1] <= 1 << 16:
            yield SparseLinear(dense)
            if _in_blocks(weight):
                yield SparseLinear(dense, in_blocks=True)
    elif isinstance(dense, nn.Conv2d):
        ordinary = dense.groups == 1 and dense.padding_mode == "zeros" and not isinstance(dense.padding, str)
        if ordinary and signed is not None and takes_signs and set(dense.dilation) == {1}:
            yield SignConv(dense, *signed)
        one = set(dense.kernel_size) == set(dense.stride) == {1} and set(dense.padding) == {0}
        if ordinary and one and _share_of_zeros(weight) >= _LEAST_ZEROS and weight.shape[1] <= 1 << 16:
            yield SparseConv1x1(dense)


def _nothing(dense: nn.Module) -> str:
    """Why no kernel takes a layer."""
    if isinstance(dense, nn.Conv2d):
        return "no kernel: filters neither 1 x 1 with many zeros, nor of signs with inputs of signs"
    return "no kernel: neither many zeros, nor at most 16 values, nor signs"


def _signed(layer: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Signs and a scale for each output, where a weight is that."""
    stack = representations(layer, "weight")
    rows = weight.detach().flatten(1)
    if not rows.numel():
        return None
    scales = rows.abs().amax(1)
    if not bool((rows.abs() == scales[:, None]).all()) or not bool((scales > 0).all()):
        return None
    if not (stack and isinstance(stack[-1], Signs)) and len(rows) * 8 > rows.numel():
        return None  # a row of few weights is of one magnitude by chance
    return torch.where(weight.detach() >= 0, 1, -1), scales


def _coded(layer: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Codes below 16, their table, and a scale for each output, where a weight is that."""
    stack = representations(layer, "weight")
    top = stack[-1] if stack else None
    scales = torch.ones(len(weight))
    values = weight.detach()
    if isinstance(top, ScaledCodebook):
        scales = top.stored_scales().detach()
        values = top.codebook.table().detach()[top.codebook.codes.long()]
    elif isinstance(top, Signs):
        stored = top.stored_scales()
        if stored is not None:
            if set(stored.shape[1:]) - {1}:
                return None
            scales = stored.detach().flatten().expand(len(weight)).contiguous()
        values = top.codes.float()
    elif isinstance(top, Grid) and top.columns is None and top.zero is None and set(top.steps.shape[1:]) <= {1}:
        scales = top.stored_steps().detach().flatten().expand(len(weight)).contiguous()
        values = top.codes.float()
    table = torch.unique(values)
    if len(table) > codebook.SIZE or not bool(torch.isfinite(table).all()):
        return None
    codes = torch.searchsorted(table, values.contiguous())
    if not torch.equal(table[codes] * scales[:, None], weight):
        return None
    whole = torch.cat([table, torch.zeros(codebook.SIZE - len(table))])
    return codes.to(torch.uint8), whole, scales


def _share_of_zeros(weight: Tensor) -> float:
    return float((weight == 0).double().mean()) if weight.numel() else 0.0


def _in_blocks(weight: Tensor) -> bool:
    """Whether zeros fill blocks of 4 rows and a column so well that few weights more are computed."""
    rows = len(weight) // 4 * 4
    if not rows:
        return False
    blocks = (weight[:rows] != 0).view(rows // 4, 4, -1)
    return int(blocks.any(1).sum()) * 4 <= 1.3 * int(blocks.sum())


def _is_signs(nodes: dict[str, Node], network: Network, name: str) -> bool:
    """Whether a result holds nothing but signs."""
    node = nodes[name]
    while word_of(network, node) in _SAME_VALUES:
        node = nodes[node.inputs[0]]
    return node.op == "sign_through"


def _take_unsigned_(network: Network, chosen: dict[str, CompressedLayer]) -> None:
    """Layers that look at nothing but signs need no signs made for them: they read what the sign reads."""
    of_signs = {path for path, made in chosen.items() if isinstance(made, SignConv) or getattr(made, "of_signs", False)}
    nodes = {node.name: node for node in network.nodes}
    network.nodes = needed(
        [
            replace(node, inputs=nodes[node.inputs[0]].inputs)
            if node.op == MODULE and node.path in of_signs and nodes[node.inputs[0]].op == "sign_through"
            else node
            for node in network.nodes
        ]
    )


def _take_rectifiers_(network: Network, chosen: dict[str, CompressedLayer]) -> None:
    """A ReLU that alone reads a layer is computed with it."""
    renamed: dict[str, str] = {}
    for node in network.nodes:
        if word_of(network, node) != "relu":
            continue
        source = next(other for other in network.nodes if other.name == node.inputs[0])
        made = chosen.get(source.path) if source.op == MODULE else None
        calls = sum(other.op == MODULE and other.path == source.path for other in network.nodes)
        if made is not None and made.takes_rectifier and calls == len(network.consumers(source.name)) == 1:
            made.rectify = True
            renamed[node.name] = source.name
    network.nodes = [
        replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        for node in network.nodes
        if node.name not in renamed
    ]


def _of_images(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of the only input, if it is of images that convolutions see."""
    inputs = [shapes[node.name] for node in network.nodes if node.op == INPUT]
    convolved = any(kind_of(layer) == "Conv2d" for layer in network.layers().values())
    return inputs[0] if convolved and len(inputs) == 1 and len(inputs[0]) == 4 and all(inputs[0]) else None


def _faster_layout(network: Network, shape: tuple[int, ...]) -> tuple[Network, Layout]:
    """The network in the layout of weights and maps in which it is faster, and gives the same answers but for rounding."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        try:
            answers, others = (n.all_answers(x)[-1].double() for n in (network, last))
        except (RuntimeError, TypeError):  # inputs that are no floats, or a view that this layout does not allow
            return network, "channels first"
        far = float((answers - others).abs().max()) > 10 * TOLERANCE * float(answers.abs().max())
        if far or not bool(torch.isfinite(others).all()):
            return network, "channels first"
        first_ms, last_ms = _take_turns([lambda: network.all_answers(x)[-1], lambda: last.all_answers(x)[-1]])
    return (last, "channels last") if last_ms <= _WORTH_IT * first_ms else (network, "channels first")


def _take_turns(calls: list[Callable[[], Tensor]]) -> list[float]:
    """Medians in ms of one call each, in turns."""
    n_calls, longest = [], 0.0
    for call in calls:
        call()
        begun = time.perf_counter()
        call()
        seconds = time.perf_counter() - begun
        longest = max(longest, seconds)
        n_calls.append(max(1, int(_SECONDS / max(seconds, 1e-7))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(_ROUNDS if longest < _LONG else 1):
        for k, call in enumerate(calls):
            begun = time.perf_counter()
            for _ in range(n_calls[k]):
                call()
            times[k].append((time.perf_counter() - begun) / n_calls[k] * 1e3)
    return [statistics.median(found) for found in times]
