"""Importance of a channel by how often it is zero after its ReLU."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import Group, Network, Node, node_shapes
from penjing.graph.modules import keeps_shape, kind_of
from penjing.graph.network import MODULE
from penjing.graph.ops import OPERATIONS
from penjing.training import Batch

_KEEP_CHANNELS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "batch_norm", "group_norm")


def average_zeros(network: Network, groups: Sequence[Group], batches: Iterable[Batch]) -> list[Tensor]:
    """The average percentage of zeros of each channel, as a fraction.

    APoZ[c] = (number of zeros of channel c right after its ReLU, over samples and places) / (samples * places)

    Counted behind the first ReLU (ReLU6, clamp at 0) that the channel meets, before what comes after it: a pooling changes the
    share. Where coupled layers meet several, over all of them. The network is in evaluation mode.
    Returns: per group (channels,), 0 to 1.
    Raises: SettingError: channels that meet no such nonlinearity before they are read.
    Source: Hu et al. 2016, arXiv:1607.03250, eq. 1.
    """
    shapes = node_shapes(network)
    meetings = [_meetings(network, group, shapes) for group in groups]
    counted: dict[tuple[str, int], Tensor] = {}
    places: dict[tuple[str, int], int] = {}

    def counting(node: str, dims: Sequence[int]) -> Callable[[Tensor], Tensor]:
        def watch(x: Tensor) -> Tensor:
            for dim in dims:
                zeros = (x <= 0).movedim(dim, 0).flatten(1)  # what a ReLU makes exactly 0
                counted[node, dim] = counted.get((node, dim), 0) + zeros.sum(1).cpu()
                places[node, dim] = places.get((node, dim), 0) + zeros.shape[1]
            return x

        return watch

    dims: dict[str, dict[int, None]] = {}
    for found in meetings:
        for node, dim, _, _ in found:
            dims.setdefault(node, {})[dim] = None
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), network.watched({(node, 0): counting(node, list(d)) for node, d in dims.items()}):
            for batch in batches:
                network.all_answers(*batch.args, **batch.kwargs)
    finally:
        network.train(training)
    shares = []
    for group, found in zip(groups, meetings, strict=True):
        zeros = torch.zeros(group.n_channels, dtype=torch.float64)
        total = torch.zeros(group.n_channels, dtype=torch.float64)
        for node, dim, channels, indices in found:
            if (node, dim) in counted:
                zeros.index_add_(0, channels, counted[node, dim].double()[indices])
                total.index_add_(0, channels, torch.full((len(indices),), float(places[node, dim]), dtype=zeros.dtype))
        shares.append((zeros / total.clamp_min(1)).float())
    return shares


def often_zero(shares: Tensor) -> list[int]:
    """The channels of a layer that go: APoZ[c] > mean + standard deviation of the layer's APoZ.

    Args:
        shares: (channels,); the deviation is that of the layer itself, divided by the number of its channels.
    Returns: their positions, ascending.
    Source: Hu et al. 2016, arXiv:1607.03250, section 3.2.
    """
    values = shares.double()
    return torch.nonzero(values > values.mean() + values.std(correction=0)).flatten().tolist()


def _meetings(
    network: Network, group: Group, shapes: dict[str, tuple[int, ...]]
) -> list[tuple[str, int, Tensor, Tensor]]:
    """The nonlinearities that a group's channels meet first: node, dimension, and pair by pair a channel and its index."""
    found: dict[tuple[str, int, str], tuple[str, int, Tensor, Tensor]] = {}
    for place in group.places:
        kind = kind_of(network.get_submodule(place.path)) or ""
        layer = network.get_submodule(place.path)
        rows = place.dim == (1 if kind.startswith("ConvTranspose") else 0)
        if not place.produces or place.name != "weight" or not rows or not kind.startswith(("Conv", "Linear")):
            continue
        if kind.startswith("ConvTranspose") and layer.groups != 1:
            continue
        for node in network.nodes:
            if node.op == MODULE and node.path == place.path:
                dim = len(shapes[node.name]) - 1 if kind == "Linear" else 1
                for name in _first_rectifiers(network, node, dim, shapes):
                    channels, indices = torch.as_tensor(place.channels), torch.as_tensor(place.indices)
                    found.setdefault((name, dim, str(indices.tolist())), (name, dim, channels, indices))
    met = torch.zeros(group.n_channels, dtype=torch.bool)
    for _, _, channels, _ in found.values():
        met[channels] = True
    if not bool(met.all()):
        raise SettingError(
            f"apoz: the channels of {group.name} meet no ReLU before they are read, so none of their values is exactly 0; "
            f'leave them out by layers: ["!{group.producers[0]}"], or choose another score, such as taylor.'
        )
    return list(found.values())


def _first_rectifiers(network: Network, start: Node, dim: int, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Behind a node, the first nodes on every way that set what is not positive to 0."""
    found: list[str] = []
    seen, stack = {start.name}, [start]
    while stack:
        for node in network.consumers(stack.pop().name):
            if node.name in seen:
                continue
            seen.add(node.name)
            shape, before = shapes[node.name], shapes[start.name]
            if len(shape) != len(before) or shape[dim] != before[dim]:
                continue
            if _rectifies(network, node):
                found.append(node.name)
            elif _keeps_channels(network, node):
                stack.append(node)
    return found


def _rectifies(network: Network, node: Node) -> bool:
    if node.op == MODULE:
        return kind_of(network.get_submodule(node.path)) in ("ReLU", "ReLU6")
    return node.op in ("relu", "relu6") or (node.op == "clamp" and node.settings["min"] == 0)


def _keeps_channels(network: Network, node: Node) -> bool:
    if node.op == MODULE:
        layer = network.get_submodule(node.path)
        return keeps_shape(layer) or "Pool" in str(kind_of(layer))
    operation = OPERATIONS.get(node.op)
    return (operation is not None and operation.elementwise) or node.op.removesuffix("2d") in _KEEP_CHANNELS
