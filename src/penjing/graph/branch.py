"""A narrower self of a network inside it: the same layers, of which it uses the first channels; and cutting it out again.

Weights are not copied. The narrower self reads slices of them:

    tensor conv.weight ── slice rows ── slice columns ──┐
    x ──────────────────────────────────────────── convolution ── norm of its own ── ...

so a training of one trains the other, a codebook of one is the other's, and channels that pruning removes go from both.
Norms have statistics of their own, for a sum over fewer channels is distributed otherwise.
Source: Yu et al. 2019 (Slimmable Neural Networks), arXiv:1812.08928, sections 3.2 and 3.3 (switchable batch normalization).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from penjing.errors import SurgeryError
from penjing.graph.groups import Removal
from penjing.graph.modules import kind_of
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT, TENSOR, Network, Node, needed, set_module, tensor_at
from penjing.graph.ops import apply_operation
from penjing.graph.program import in_order_of_answers, per_sample
from penjing.graph.surgery import remove_channels, slice_

_CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")


@dataclass
class Branch:
    """What has to be added to a network for a narrower self of it.

    Attributes:
        nodes: in order; where nothing is narrower, the network's own nodes are used.
        modules: layers of its own, by path.
        names: by the name of one of the network's nodes, the node that stands for it.
    """

    nodes: list[Node]
    modules: dict[str, nn.Module]
    names: dict[str, str]


def branch(
    network: Network,
    removal: Removal,
    of: Sequence[Node],
    where: str,
    *,
    start: Mapping[str, str] | None = None,
) -> Branch:
    """The nodes that compute `of` without the channels of a removal, with slices of the network's weights.

    Args:
        removal: the channels that the narrower self does not have.
        of: nodes of the network in order, without exits and output.
        where: the path below which layers of its own live, and what its nodes are called after.
        start: by nodes before those, the nodes that stand for them; whatever depends on them is there again, though nothing of
            it be narrower.
    Convolutions and linear layers read slices. Batch norms, and other layers whose tensors are cut, are copied.
    """
    cut = remove_channels(network, removal)
    slices: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for piece in removal.slices:
        slices.setdefault(piece.path, {}).setdefault(piece.name, {})[piece.dim] = piece.keep
    changed_nodes = {change.owner for change in removal.changes if change.of == "node"}
    settings = {node.name: node.settings for node in cut.nodes}
    found = Branch([], {}, dict(start or {}))
    taken = {node.name for node in network.nodes}
    narrower: set[str] = set()

    def fresh(stem: str) -> str:
        name, k = stem, 0
        while name in taken:
            k += 1
            name = f"{stem}_{k}"
        taken.add(name)
        return name

    def add(node: Node) -> str:
        found.nodes.append(node)
        return node.name

    def sliced(path: str, name: str) -> str:
        """The name of a node that gives what the narrower self uses of a tensor."""
        full = f"{path}.{name}" if path else name
        source = add(Node(fresh(f"{where}_{full}".replace(".", "_")), TENSOR, path=full))
        for dim, keep in slices.get(path, {}).get(name, {}).items():
            runs = np.split(keep, np.flatnonzero(np.diff(keep) != 1) + 1)
            parts = []
            for run in runs:
                part = {"dim": dim, "start": int(run[0]), "end": int(run[-1]) + 1, "step": 1}
                parts.append(add(Node(fresh(f"{source}_slice"), "slice", (source,), settings=part)))
            source = (
                parts[0]
                if len(parts) == 1
                else add(Node(fresh(f"{source}_concat"), "concat", tuple(parts), settings={"dim": dim}))
            )
        return source

    for node in of:
        inputs = tuple(found.names.get(name, name) for name in node.inputs)
        own = slices.get(node.path, {}) if node.op == MODULE else {}
        owner, _, key = node.path.rpartition(".")
        is_cut = bool(own) or node.name in changed_nodes or (node.op == TENSOR and key in slices.get(owner, {}))
        if is_cut or narrower.intersection(node.inputs):
            narrower.add(node.name)
        elif inputs == node.inputs:
            continue
        name = f"{where}_{node.name}".replace(".", "_")
        if node.op == TENSOR:
            found.names[node.name] = sliced(owner, key)
        elif node.op != MODULE:
            found.names[node.name] = add(replace(node, name=fresh(name), inputs=inputs, settings=settings[node.name]))
        else:
            layer = cut.get_submodule(node.path)
            call = _call(layer) if own else None
            if call is not None:
                op, of_op = call
                tensors = [sliced(node.path, k) for k in ("weight", "bias") if getattr(layer, k, None) is not None]
                made = Node(fresh(name), op, (*inputs, *tensors), settings=of_op, scope=node.path)
            elif own or (node.name in narrower and isinstance(layer, nn.modules.batchnorm._BatchNorm)):
                # what the norm reads is distributed otherwise
                path = f"{where}.{node.path}"
                found.modules[path] = copy.deepcopy(layer)
                made = Node(fresh(name), MODULE, inputs, path)
            else:
                made = replace(node, name=fresh(name), inputs=inputs)
            found.names[node.name] = add(made)
    return found


def _call(layer: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """The operation that does what a layer does with weights that it is given, and its settings; None: there is none."""
    kind = kind_of(layer)
    if kind == "Linear":
        return "linear", {}
    if kind not in _CONVOLUTIONS or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    n = len(layer.kernel_size)  # type: ignore[arg-type]
    return "convolution", {
        "stride": tuple(layer.stride),  # type: ignore[arg-type]
        "padding": tuple(layer.padding),  # type: ignore[arg-type]
        "dilation": tuple(layer.dilation),  # type: ignore[arg-type]
        "transposed": False,
        "output_padding": (0,) * n,
        "groups": int(layer.groups),  # type: ignore[arg-type]
    }


def cut_out(network: Network, answer: int) -> Network:
    """One answer of a network as a network of its own, with whole layers: what that answer does not need is not there.

    Weights that are slices of a layer's become that layer, cut, with their representations; what else is computed from
    parameters alone becomes a layer of its own, under the path of the layer that it is a part of where that is free. It answers
    bit for bit what the whole network answers there.

    Args:
        answer: the number of an exit, or the number of exits for the final answer.
    Raises: SurgeryError: no such answer.
    """
    answers = [node for node in network.nodes if node.op in (EXIT, OUTPUT)]
    if not 0 <= answer < len(answers):
        raise SurgeryError(f"surgery: the network has the answers 0 to {len(answers) - 1}, got {answer}.")
    chosen = answers[answer]
    end = chosen if chosen.op == OUTPUT else Node(chosen.name, OUTPUT, chosen.inputs)
    nodes = needed([*(node for node in network.nodes if node.op not in (EXIT, OUTPUT)), end])
    samples = per_sample(nodes)
    with torch.no_grad():
        learned = _learned(network, [node for node in nodes if node.name not in samples])
    roots = {node.name: _root(node, {n.name: n for n in nodes}) for node in nodes}
    called = dict.fromkeys(node.path for node in nodes if node.op == MODULE)
    modules = {path: copy.deepcopy(network.get_submodule(path)) for path in called}
    made: list[Node] = []
    for node in nodes:
        if node.op in ("convolution", "linear") and all(name in learned for name in node.inputs[1:]):
            path = _free(node.scope or roots[node.inputs[1]], modules)
            cut = _cut_layer(network, node, {n.name: n for n in nodes})
            modules[path] = cut if cut is not None else _layer(node, [learned[name] for name in node.inputs[1:]])
            made.append(Node(node.name, MODULE, node.inputs[:1], path))
        else:
            made.append(node)
    made = needed(made)
    made, modules = _renamed(made, modules)
    tensors = {node.path: tensor_at(network, node.path).detach().clone() for node in made if node.op == TENSOR}
    for path, tensor in tensors.items():
        owner, _, key = path.rpartition(".")
        if key in network.get_submodule(owner)._parameters:
            tensors[path] = nn.Parameter(tensor)
    whole = Network(made, modules, network.input_shapes, network.hints, tensors, network.limits)
    return whole.train(network.training)


def _learned(network: Network, nodes: Sequence[Node]) -> dict[str, torch.Tensor]:
    """The results of nodes that depend on parameters alone."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    found: dict[str, torch.Tensor] = {}
    for node in nodes:
        if node.op == TENSOR:
            found[node.name] = tensor_at(network, node.path)
        elif node.op not in (MODULE, INPUT, OUTPUT) and all(name in found for name in node.inputs):
            found[node.name] = apply_operation(node.op, tuple(found[n] for n in node.inputs), node.settings, device)
    return found


def _root(node: Node, nodes: Mapping[str, Node]) -> str:
    """The layer whose tensor a node is a part of; "" where that cannot be told."""
    while node.op != TENSOR:
        if not node.inputs:
            return ""
        node = nodes[node.inputs[0]]
    return node.path.rpartition(".")[0]


def _cut_layer(network: Network, node: Node, nodes: Mapping[str, Node]) -> nn.Module | None:
    """The layer whose weight and bias a node reads slices of, cut to them; None where it reads anything else."""
    pieces: list[tuple[str, str, list[Cut]]] = []
    for name in node.inputs[1:]:
        cuts: list[Cut] = []
        source = nodes[name]
        while (cut := _cut(source, nodes)) is not None:
            cuts.insert(0, cut[0])
            source = nodes[cut[1]]
        owner, _, key = source.path.rpartition(".")
        if source.op != TENSOR or not owner:
            return None
        pieces.append((owner, key, cuts))
    owners, keys = {owner for owner, _, _ in pieces}, [key for _, key, _ in pieces]
    layer = copy.deepcopy(network.get_submodule(pieces[0][0]))
    call = _call(layer)
    if len(owners) > 1 or keys not in (["weight"], ["weight", "bias"]) or call is None or call[0] != node.op:
        return None
    if {**call[1], "groups": 0} != {**node.settings, "groups": 0}:
        return None
    if "bias" not in keys and getattr(layer, "bias", None) is not None:  # it is the whole layer's alone
        if parametrize.is_parametrized(layer, "bias"):
            parametrize.remove_parametrizations(layer, "bias", leave_parametrized=False)
        layer.bias = None  # type: ignore[assignment]
    for _, key, cuts in pieces:
        for dim, runs in cuts:
            size = getattr(layer, key).shape[dim]
            slice_(layer, key, dim, torch.cat([torch.arange(*slice(*run).indices(size)) for run in runs]))
    weight: Any = layer.weight
    if node.op == "linear":
        layer.out_features, layer.in_features = weight.shape
    else:
        layer.groups = node.settings["groups"]
        layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
    return layer


Cut = tuple[int, list[tuple[int, int]]]
"""A dimension, and from where to where its parts reach, in order."""


def _cut(node: Node, nodes: Mapping[str, Node]) -> tuple[Cut, str] | None:
    """What a node takes of a tensor, in one part or several one after another, and that tensor's node; None: something else."""
    parts = [nodes[name] for name in node.inputs] if node.op == "concat" else [node]
    dims = {part.settings.get("dim") for part in parts}
    if any(part.op != "slice" or part.settings["step"] != 1 for part in parts) or len({p.inputs[0] for p in parts}) > 1:
        return None
    if len(dims) > 1 or (node.op == "concat" and dims != {node.settings["dim"]}):
        return None
    runs = [(part.settings["start"], part.settings["end"]) for part in parts]
    return (parts[0].settings["dim"], runs), parts[0].inputs[0]


def _free(stem: str, modules: Mapping[str, nn.Module]) -> str:
    stem = stem or "layer"
    path, k = stem, 0
    while path in modules or any(other.startswith(f"{path}.") for other in modules):
        k += 1
        path = f"{stem}_{k}"
    return path


def _layer(node: Node, tensors: Sequence[torch.Tensor]) -> nn.Module:
    """A linear layer or a convolution with these tensors."""
    weight, bias = tensors[0], tensors[1] if len(tensors) > 1 else None
    s = node.settings
    with torch.device("meta"):
        if node.op == "linear":
            layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        else:
            kind: Any = getattr(nn, f"Conv{'Transpose' if s['transposed'] else ''}{weight.dim() - 2}d")
            inputs = weight.shape[0] if s["transposed"] else weight.shape[1] * s["groups"]
            outputs = weight.shape[1] * s["groups"] if s["transposed"] else weight.shape[0]
            more = {"output_padding": tuple(s["output_padding"])} if s["transposed"] else {}
            layer = kind(
                inputs,
                outputs,
                tuple(weight.shape[2:]),
                tuple(s["stride"]),
                tuple(s["padding"]),
                dilation=tuple(s["dilation"]),
                groups=s["groups"],
                bias=bias is not None,
                **more,
            )
    layer.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _renamed(nodes: Sequence[Node], modules: Mapping[str, nn.Module]) -> tuple[list[Node], dict[str, nn.Module]]:
    """Layers of a narrower self under the paths of those that they stand for, where those are free."""
    paths: dict[str, str] = {}
    used = {node.path for node in nodes if node.op == MODULE}
    for path in modules:
        if path not in used:
            continue
        head, _, rest = path.partition(".")
        paths[path] = rest if head.startswith(WIDTHS) and rest and rest not in modules else path
    return (
        [replace(node, path=paths[node.path]) if node.op == MODULE else node for node in nodes],
        {paths[path]: modules[path] for path in dict.fromkeys(node.path for node in nodes if node.op == MODULE)},
    )


WIDTHS = "width_"
"""What the paths of layers begin with that only a narrower self has."""


def with_layers(network: Network, layers: Mapping[str, nn.Module], nodes: Sequence[Node]) -> Network:
    """The network with some more layers, by path, and these nodes, each as early as an answer needs it.

    Raises: SurgeryError: there is a layer at one of the paths.
    """
    changed = copy.deepcopy(network)
    for path, module in layers.items():
        if path in changed.layers():
            raise SurgeryError(f'surgery: there is a layer "{path}" in the network already.')
        set_module(changed, path, module)
    changed.nodes = in_order_of_answers(nodes)
    return changed.train(network.training)
