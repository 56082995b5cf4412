"""Changes of structure: channels removed, a node replaced by several, batch norm folded into its convolution.

Every function returns a new network and leaves the one it got bit-identical.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.errors import SurgeryError, TraceError
from penjing.graph.groups import Removal
from penjing.graph.modules import kind_of
from penjing.graph.network import (
    EXIT,
    MODULE,
    NEVER,
    TENSOR,
    Network,
    Node,
    module_at,
    needed,
    node_shapes,
    set_module,
    with_tensors,
)
from penjing.graph.program import in_order_of_answers


def remove_channels(network: Network, removal: Removal) -> Network:
    """Remove channels from every tensor that they run through.

    Args:
        removal: what `groups.Grouping.removal` made for this network.
    Returns: the smaller network; a removed channel's rows, columns, biases and statistics are gone.
    """
    small = with_tensors(network, lambda tensor: tensor)  # shared for now: what is cut need not be copied whole
    cut_tensors_(small, removal)
    nodes = {node.name: node for node in small.nodes}
    for change in removal.changes:
        if change.of == "layer":
            layer = small.get_submodule(change.owner)
            set_constant_(layer, change.setting, change.position, change.value)
            continue
        node = nodes[change.owner]
        value: Any = change.value
        if change.position is not None:
            old = node.settings[change.setting]
            value = (*old[: change.position], change.value, *old[change.position + 1 :])
        nodes[change.owner] = replace(node, settings={**node.settings, change.setting: value})
    small.nodes = [nodes[node.name] for node in small.nodes]
    shared = {t.data_ptr() for t in [*network.parameters(), *network.buffers()] if t.numel()}
    for tensor in [*small.parameters(), *small.buffers()]:
        if tensor.data_ptr() in shared:
            tensor.data = tensor.data.clone()
    return small


def cut_tensors_(model: nn.Module, removal: Removal) -> None:
    """Cut the tensors of a module with the network's paths; tied tensors stay tied."""
    cut: dict[tuple[int, int], Tensor] = {}
    for piece in removal.slices:
        layer = module_at(model, piece.path)
        keep = torch.as_tensor(piece.keep)
        if parametrize.is_parametrized(layer, piece.name):
            slice_(layer, piece.name, piece.dim, keep)
            continue
        key = (id(getattr(layer, piece.name)), piece.dim)
        if key not in cut:
            before = getattr(layer, piece.name)
            slice_(layer, piece.name, piece.dim, keep)
            cut[key] = getattr(layer, piece.name)
            cut[id(cut[key]), -1] = before  # keeps the old one alive, so that ids stay unique
        elif piece.name in layer._parameters:
            layer._parameters[piece.name] = cut[key]  # type: ignore[assignment]
        else:
            layer._buffers[piece.name] = cut[key]


def set_constant_(layer: nn.Module, name: str, position: int | None, value: int) -> None:
    """Set an attribute that is a number, or one of several."""
    if position is None:
        setattr(layer, name, value)
        return
    old = tuple(getattr(layer, name))
    setattr(layer, name, (*old[:position], value, *old[position + 1 :]))


def slice_(layer: nn.Module, name: str, dim: int, keep: Tensor) -> None:
    """Keep the indices `keep` of one dimension of a parameter or buffer, its representations included.

    Raises: SurgeryError: a parametrization that does not say how it is sliced.
    """
    if parametrize.is_parametrized(layer, name):
        stack: Any = layer.parametrizations[name]  # type: ignore[index]
        pieces = []
        for part in stack:
            if not hasattr(part, "sliced"):
                raise SurgeryError(
                    f"surgery: the parametrization {type(part).__name__} of {name} has no method sliced(dim, keep); "
                    "remove it with torch.nn.utils.parametrize.remove_parametrizations, or give it one."
                )
            pieces.append(part.sliced(dim, keep))
        for position, piece in enumerate(pieces):
            stack[position] = piece
        _slice_tensor_(stack, "original", dim, keep)
        return
    _slice_tensor_(layer, name, dim, keep)


def _slice_tensor_(owner: nn.Module, name: str, dim: int, keep: Tensor) -> None:
    tensor = getattr(owner, name)
    piece = tensor.detach().index_select(dim, keep.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(owner, name, nn.Parameter(piece, requires_grad=tensor.requires_grad))
    else:
        setattr(owner, name, piece)


def replace_node(network: Network, path: str, layers: Mapping[str, nn.Module]) -> Network:
    """Put a chain of layers in the place of one.

    Args:
        path: the layer to replace; it must be called once.
        layers: the new ones by name, in order; they live at `path.name`.
    Returns: a network in which `path` is a container of the new layers.
    Raises: TraceError: the layer is not called exactly once.
    """
    return replace_by_nodes(network, path, layers, chain(layers))


def chain(layers: Iterable[str]) -> tuple[Node, ...]:
    """Nodes that call layers one after another, as `replace_by_nodes` takes them."""
    names = list(layers)
    return tuple(Node(name, MODULE, (before,), name) for before, name in pairwise(["", *names]))


def replace_by_nodes(network: Network, path: str, layers: Mapping[str, nn.Module], nodes: Sequence[Node]) -> Network:
    """Put a few nodes in the place of a layer: branches, concatenations, shuffles.

    Args:
        path: the layer to replace; it must be called once.
        layers: new layers by name; they live at `path.name`.
        nodes: in order, by names of their own. "" stands for what the layer took; a node's path is a name of `layers`; the last
            one's result takes the place of the layer's.
    Returns: a network in which `path` is a container of the new layers.
    Raises: TraceError: the layer is not called exactly once.
    """
    changed = copy.deepcopy(network)
    old = changed.node_of(path)
    container = nn.Module()
    for name, layer in layers.items():
        container.add_module(name, layer)
    set_module(changed, path, container)
    names = {"": old.inputs[0], nodes[-1].name: old.name}
    placed: list[Node] = []
    for node in nodes:
        name = names.setdefault(node.name, changed.fresh_name(f"{old.name}_{node.name}"))
        inputs = tuple(names[source] for source in node.inputs)
        inside = f"{path}.{node.path}" if node.op == MODULE else ""
        placed.append(Node(name, node.op, inputs, inside, node.settings, scope="" if inside else path))
    changed.nodes = [new for node in network.nodes for new in (placed if node.name == old.name else [node])]
    return changed.train(network.training)


def insert_after(network: Network, name: str, nodes: Sequence[Node], layers: Mapping[str, nn.Module]) -> Network:
    """Add nodes right behind node `name`, and the modules they call.

    Args:
        layers: new modules by path.
    Raises: SurgeryError: there is no node of that name, or there is a layer at one of the paths.
    """
    position = next((i for i, node in enumerate(network.nodes) if node.name == name), None)
    if position is None:
        raise SurgeryError(f'surgery: there is no node "{name}" in the network.')
    changed = copy.deepcopy(network)
    for path, layer in layers.items():
        if path in network.layers():
            raise SurgeryError(f'surgery: there is a layer "{path}" in the network already.')
        set_module(changed, path, layer)
    changed.nodes = [*network.nodes[: position + 1], *nodes, *network.nodes[position + 1 :]]
    return changed.train(network.training)


def with_one_answer(network: Network) -> Network:
    """A network that answers with one tensor: the only one of its answers, the one called "logits", or with exits.

    A model that answers with a list of tensors of one shape, (batch, classes), as MSDNet and BranchyNet do, becomes a network
    with exits: the last is the answer, the others are exits that nobody takes yet.
    Raises: TraceError: it answers with several other tensors, none of them called "logits".
    """
    output = network.nodes[-1]
    form = output.settings.get("form")
    if form is None:
        return network
    if isinstance(form, tuple) and form[0] in ("tuple", "list") and len(form) > 2:
        with_exits = _answers_as_exits(network, form[1:])
        if with_exits is not None:
            return with_exits
    names = dict(zip(form[1::2], form[2::2], strict=True)) if isinstance(form, tuple) and form[0] == "dict" else {}
    index = 0 if len(output.inputs) == 1 else names.get("logits")
    if not isinstance(index, int):
        found = ", ".join(names) or f"{len(output.inputs)} tensors"
        raise TraceError(
            f'task: the model must answer with one tensor, or have one called "logits"; it answers with {found}. '
            "Wrap it in a module that returns the answer."
        )
    single = copy.deepcopy(network)
    single.nodes = needed([*network.nodes[:-1], replace(output, inputs=(output.inputs[index],), settings={})])
    called = {node.path for node in single.nodes if node.op == MODULE}
    for path in set(network.layers()) - called:
        parent, _, name = path.rpartition(".")
        del module_at(single, parent)._modules[name]
    return single.train(network.training)


def _answers_as_exits(network: Network, answers: Sequence[object]) -> Network | None:
    """The network with all answers but the last as exits; None where they are no logits of the same classes."""
    shapes = node_shapes(network)
    output = network.nodes[-1]
    if not all(isinstance(k, int) for k in answers):
        return None
    sources = [output.inputs[k] for k in answers if isinstance(k, int)]
    if len({shapes[name] for name in sources}) > 1 or len(shapes[sources[0]]) != 2:
        return None
    changed = copy.deepcopy(network)
    exits = [
        Node(changed.fresh_name(f"exit_{k}"), EXIT, (name,), settings={"threshold": NEVER})
        for k, name in enumerate(sources[:-1])
    ]
    changed.nodes = needed([*network.nodes[:-1], *exits, replace(output, inputs=(sources[-1],), settings={})])
    changed.nodes = in_order_of_answers(changed.nodes)
    return changed.train(network.training)


def fold_batch_norms(network: Network, within: str = "") -> tuple[Network, list[str]]:
    """Multiply each batch norm into the convolution or linear layer before it, as evaluation computes it.

    W'[o] = W[o] * gamma[o] / sqrt(var[o] + eps),   b'[o] = beta[o] + (b[o] - mean[o]) * gamma[o] / sqrt(var[o] + eps)

    Args:
        within: the path of the module whose norms are meant; "" for all.
    Returns: the network without those batch norms, and the paths of the ones that had to stay: those that do not follow
    a convolution or linear layer of their own, or whose layer's weight already has a representation.
    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2, without the quantization.
    """
    folded = copy.deepcopy(network)
    stayed: list[str] = []
    shapes = node_shapes(network)
    for node in network.nodes:
        norm = network.get_submodule(node.path) if node.op == MODULE else None
        is_meant = not within or node.path.startswith(f"{within}.")
        if not (is_meant and isinstance(norm, nn.modules.batchnorm._BatchNorm)):
            continue
        if not _fold_one_(folded, node, len(shapes[node.name])):
            stayed.append(node.path)
    return folded.train(network.training), stayed


def settled_batch_norms(network: Network) -> tuple[Network, list[str]]:
    """Batch norms as scales and shifts: as evaluation computes them, with statistics that are the same for all channels.

    gamma' = gamma / sqrt(var + eps),   beta' = beta - mean * gamma',   mean' = 0,   var' = 1 - eps

    Returns: the network, and the paths of those norms; those without a scale and shift, or without statistics, stay.
    """
    settled = copy.deepcopy(network)
    found = []
    for path, layer in settled.layers().items():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm) or layer.running_var is None or not layer.affine:
            continue
        if parametrize.is_parametrized(layer):
            continue
        with torch.no_grad():
            assert layer.running_mean is not None
            scale = layer.weight / (layer.running_var + layer.eps).sqrt()
            layer.bias.sub_(layer.running_mean * scale)
            layer.weight.copy_(scale)
            layer.running_mean.zero_()
            layer.running_var.fill_(1 - layer.eps)
        found.append(path)
    return settled, found


def push_biases(network: Network) -> tuple[Network, list[str]]:
    """Move the bias of a layer into the 1 x 1 convolution or linear layer right behind it, where that is exact.

    B(A x + a) + b = B A x + (B a + b), for B a 1 x 1 convolution without padding or a linear layer that alone reads A's result.
    Returns: the network, and the paths of the layers that have no bias any more.
    """
    moved = copy.deepcopy(network)
    without: list[str] = []
    for node in network.nodes:
        before = next((n for n in network.nodes if node.inputs and n.name == node.inputs[0]), None)
        if node.op != MODULE or before is None or before.op != MODULE or len(network.consumers(before.name)) > 1:
            continue
        first, second = moved.get_submodule(before.path), moved.get_submodule(node.path)
        plain = not (parametrize.is_parametrized(first) or parametrize.is_parametrized(second))
        plain = plain and _alone(network, before.path) and _alone(network, node.path)
        if (
            not plain
            or kind_of(first) not in ("Conv2d", "Linear")
            or kind_of(first)
            != kind_of(second)  # a linear layer runs along the last dimension, a convolution along channels
            or first.bias is None
            or not _mixes_places_alone(second)
        ):
            continue
        with torch.no_grad():
            weight = second.weight.flatten(1)  # type: ignore[operator]  # (out, in)
            old = second.bias if second.bias is not None else weight.new_zeros(len(weight))
            second.bias = nn.Parameter(old + weight @ first.bias)  # type: ignore[operator]
            first.bias = None  # type: ignore[assignment]
        without.append(before.path)
    return moved.train(network.training), without


def _alone(network: Network, path: str) -> bool:
    """Whether a layer is called once and nothing else reads its tensors."""
    mine = {id(tensor) for tensor in network.get_submodule(path).parameters()}
    held = [id(t) for m in network.modules() for t in m._parameters.values() if t is not None and id(t) in mine]
    calls = sum(node.path == path for node in network.nodes if node.op == MODULE)
    read = any(node.op == TENSOR and node.path.rpartition(".")[0] == path for node in network.nodes)
    return calls == 1 and not read and len(held) == len(mine)


def _mixes_places_alone(layer: nn.Module) -> bool:
    if kind_of(layer) == "Linear":
        return True
    if not isinstance(layer, nn.Conv2d) or kind_of(layer) is None:
        return False
    return max(layer.kernel_size) == 1 and layer.groups == 1 and layer.padding in ((0, 0), 0)


def _fold_one_(network: Network, node: Node, rank: int) -> bool:
    node = next(other for other in network.nodes if other.name == node.name)  # a norm before it may be gone already
    before = next(other for other in network.nodes if other.name == node.inputs[0])
    norm = network.get_submodule(node.path)
    if before.op != MODULE or norm.running_var is None or len(network.consumers(before.name)) > 1:
        return False
    layer = network.get_submodule(before.path)
    if kind_of(layer) not in ("Conv2d", "Linear") or parametrize.is_parametrized(layer):
        return False
    if not (_alone(network, before.path) and _alone(network, node.path)):
        return False
    if parametrize.is_parametrized(norm) or (
        kind_of(layer) == "Linear" and rank != 2
    ):  # the norm's channels: dimension 1
        return False
    mean, var = norm.running_mean, norm.running_var
    gamma = norm.weight if norm.affine else torch.ones_like(var)  # type: ignore[arg-type]
    beta = norm.bias if norm.bias is not None else torch.zeros_like(var)
    with torch.no_grad():
        scale = gamma / torch.sqrt(var + norm.eps)  # type: ignore[operator, arg-type]
        weight = layer.weight
        weight.mul_(scale.reshape(-1, *[1] * (weight.dim() - 1)))  # type: ignore[operator]
        old_bias = layer.bias if layer.bias is not None else torch.zeros_like(mean)
        layer.bias = nn.Parameter((beta + (old_bias - mean) * scale).detach().clone())  # type: ignore[operator]
    parent, _, name = node.path.rpartition(".")
    del network.get_submodule(parent)._modules[name]
    network.nodes = [
        replace(other, inputs=tuple(before.name if i == node.name else i for i in other.inputs))
        for other in network.nodes
        if other.name != node.name
    ]
    return True
