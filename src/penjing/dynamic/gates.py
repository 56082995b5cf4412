"""What decides whether a sample needs a block: small networks that look at the sample, counted like everything else."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from penjing.dynamic.blocks import Block
from penjing.dynamic.maps import is_fixed_map, mean_over_all
from penjing.graph import Network, Node, node_shapes, with_layers
from penjing.graph.network import INPUT, MODULE, set_module
from penjing.graph.ops import GATE

HIDDEN = 10
"""Numbers that a gate thinks in, as in SkipNet."""
LEAN = 3.0
"""Bias of gates at the start: with 1 many close for good while the network is still learning, before anything asks them to."""
GATES = "routing"
"""Where layers of gates live."""
NORMS = f"{GATES}.norms"
"""Those that bring what a gate sees to mean 0 and variance 1 while it learns, until `settled_gates`."""


def _means_over_rows(network: Network, stem: str, source: str, shape: Sequence[int]) -> tuple[list[Node], int]:
    """As `means_over_parts`, every row a part: hardly slower than one mean, which counts where it is done for each block."""
    if not is_fixed_map(network, shape):
        return mean_over_all(network, stem, source, shape)
    mean = Node(network.fresh_name(f"{stem}_rows"), "mean", (source,), settings={"dims": (3,), "keepdim": False})
    flat = Node(network.fresh_name(f"{stem}_map"), "flatten", (mean.name,), settings={"start_dim": 1})
    return [mean, flat], shape[1] * shape[2]


def _standardised(key: object, source: str, width: int) -> tuple[Node, dict[str, nn.Module]]:
    """A node that brings numbers, (batch, width), to mean 0 and variance 1 over samples, and its layer.

    Numbers behind a ReLU are all above 0: the way in which a linear layer answers for every sample alike is then by far the
    steepest for its weights, and gates open or shut for everybody before they tell samples apart.
    """
    path = f"{NORMS}.{key}"
    return Node(f"gate_{key}_norm", MODULE, (source,), path), {path: nn.BatchNorm1d(width, affine=False)}


def feed_forward_gates(
    network: Network, blocks: Sequence[Block], columns: int = 1, lean: float = LEAN
) -> tuple[Network, list[str]]:
    """A gate of its own in front of every block: means over rows of the map, standardised, a linear layer to the logits.

    Args:
        columns: logits of each.
        lean: bias of the first logit at the start, so that most gates are open then.
    Returns: the network and the names of the nodes that give the logits, (batch, columns).
    Source: Wang et al. 2018 (SkipNet), arXiv:1711.09485, section 3.1 (feed-forward gates; here without convolutions).
    """
    shapes = node_shapes(network)
    found: list[str] = []
    layers: dict[str, nn.Module] = {}
    added: dict[str, list[Node]] = {}
    for k, block in enumerate(blocks):
        nodes, width = _means_over_rows(network, f"gate_{k}", block.start, shapes[block.start])
        norm, own = _standardised(k, nodes[-1].name if nodes else block.start, width)
        layers |= {**own, f"{GATES}.{k}": nn.Linear(width, columns)}
        lean_(layers[f"{GATES}.{k}"], lean)
        found.append(f"gate_{k}_logits")
        nodes += [norm, Node(found[-1], MODULE, (norm.name,), f"{GATES}.{k}")]
        added.setdefault(block.start, []).extend(nodes)
    return _added(network, layers, added), found


def recurrent_gates(
    network: Network, blocks: Sequence[Block], columns: int = 1, lean: float = LEAN
) -> tuple[Network, list[str]]:
    """One small recurrent network that goes along: z_k = A_k [m(x_k), tanh(z_{k-1})], the logits are z_k's first numbers.

    m are means over rows of the map, standardised; z has 10 numbers, or as many as there are logits; the last of all has only
    these. The usual unit's matrices, and the one that makes logits of its state, are a single one here: of the time that a
    gate takes for a single sample, most is that of calling its layers.
    Args, returns: as `feed_forward_gates`.
    Source: Wang et al. 2018 (SkipNet), arXiv:1711.09485, section 3.1, with this unit in the place of an LSTM; Lin et al. 2017
    (Runtime Neural Pruning), section 3.3 (encoder for each layer, recurrent decoder).
    """
    shapes = node_shapes(network)
    found: list[str] = []
    layers: dict[str, nn.Module] = {}
    added: dict[str, list[Node]] = {}
    state, hidden = "", max(HIDDEN, columns)
    for k, block in enumerate(blocks):
        last = k == len(blocks) - 1
        nodes, width = _means_over_rows(network, f"gate_{k}", block.start, shapes[block.start])
        norm, own = _standardised(k, nodes[-1].name if nodes else block.start, width)
        layers |= own
        nodes.append(norm)
        seen = norm.name
        if state:
            nodes += [
                Node(f"gate_{k}_tanh", "tanh", (state,)),
                Node(f"gate_{k}_seen", "concat", (seen, f"gate_{k}_tanh"), settings={"dim": 1}),
            ]
            seen, width = f"gate_{k}_seen", width + hidden
        layers[f"{GATES}.{k}"] = nn.Linear(width, columns if last else hidden)
        lean_(layers[f"{GATES}.{k}"], lean, columns)
        state = f"gate_{k}_look"
        nodes.append(Node(state, MODULE, (seen,), f"{GATES}.{k}"))
        if columns > 1 and not last:
            first = {"dim": 1, "start": 0, "end": columns, "step": 1}
            nodes.append(Node(f"gate_{k}_logits", "slice", (state,), settings=first))
        added.setdefault(block.start, []).extend(nodes)
        found.append(nodes[-1].name)
    return _added(network, layers, added), found


def policy(network: Network, columns: int, lean: float = 1.0, width: int = 8) -> tuple[Network, str]:
    """A small network that sees the input and decides everything at once.

    The image at a quarter of its places, 3x3 convolutions of `width`, 2 `width` and 4 `width` channels, the last two of stride
    2, each with batch norm and ReLU, mean over places, standardised, a linear layer; for vectors two linear layers.
    Returns: the network and the name of the node that gives the logits, (batch, columns).
    Source: Wu et al. 2018 (BlockDrop), arXiv:1711.08393, section 3.1 (there a ResNet-8; this costs 0.5 % of ResNet-20).
    """
    first = next(node for node in network.nodes if node.op == INPUT)
    shape = node_shapes(network)[first.name]
    layers: dict[str, nn.Module] = {}
    nodes: list[Node] = []
    source = first.name

    def call(name: str, layer: nn.Module) -> None:
        nonlocal source
        layers[f"{GATES}.policy.{name}"] = layer
        nodes.append(Node(f"policy_{name}", MODULE, (source,), f"{GATES}.policy.{name}"))
        source = nodes[-1].name

    if len(shape) == 4:
        call("pool", nn.AvgPool2d(2))
        inputs = shape[1]
        for k in range(3):
            call(f"conv{k}", nn.Conv2d(inputs, width << k, 3, 1 if k == 0 else 2, 1, bias=False))
            call(f"norm{k}", nn.BatchNorm2d(width << k))
            call(f"relu{k}", nn.ReLU())
            inputs = width << k
        nodes.append(Node("policy_mean", "mean", (source,), settings={"dims": (2, 3), "keepdim": False}))
        source = "policy_mean"
    else:
        call("look", nn.Linear(shape[-1], 4 * width))
        call("relu", nn.ReLU())
        inputs = 4 * width
    norm, own = _standardised("policy", source, inputs)
    layers |= own
    nodes.append(norm)
    source = norm.name
    call("logits", nn.Linear(inputs, columns))
    lean_(layers[f"{GATES}.policy.logits"], lean)
    return _added(network, layers, {first.name: nodes}), source


def lean_(layer: nn.Module, bias: float, columns: int | None = None) -> None:
    """Small weights of the first `columns` logits, or of all, and a bias that leans towards open gates."""
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight[:columns].mul_(0.1)
        layer.bias[:columns].fill_(bias)


def settled_gates(network: Network) -> Network:
    """Gates that have learned: what standardises their numbers is multiplied into the linear layers that see these.

    W'[:, i] = W[:, i] / sqrt(var[i] + eps),   b' = b - sum over i of W'[:, i] mean[i]
    """
    settled = copy.deepcopy(network)
    renamed: dict[str, str] = {}
    for node in network.nodes:
        if not node.path.startswith(f"{NORMS}."):
            continue
        norm, reader = settled.get_submodule(node.path), network.consumers(node.name)[0]
        if reader.op == "concat":  # with the state, which stands behind
            reader = network.consumers(reader.name)[0]
        linear = settled.get_submodule(reader.path)
        assert isinstance(norm, nn.BatchNorm1d) and isinstance(linear, nn.Linear)
        assert norm.running_mean is not None and norm.running_var is not None
        with torch.no_grad():
            seen = linear.weight[:, : norm.num_features]
            seen.mul_((norm.running_var + norm.eps).rsqrt())
            linear.bias.sub_(seen @ norm.running_mean)
        renamed[node.name] = node.inputs[0]
    nodes = [
        replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        for node in settled.nodes
        if node.name not in renamed
    ]
    if renamed:
        del settled.get_submodule(GATES)._modules[NORMS.rpartition(".")[2]]
    return with_layers(settled, {}, nodes)


def with_gates(network: Network, columns: Sequence[tuple[str, int]]) -> tuple[Network, list[str]]:
    """The network with a gate behind each node of logits, open where the logit in the column is above 0, and their names."""
    found = [
        Node(f"{name}_gate_{column}", GATE, (name,), settings={"column": column, "rule": "above"})
        for name, column in columns
    ]
    after: dict[str, list[Node]] = {}
    for node in found:
        after.setdefault(node.inputs[0], []).append(node)
    return _added(network, {}, after), [node.name for node in found]


def _added(network: Network, layers: dict[str, nn.Module], after: dict[str, list[Node]]) -> Network:
    """The network with layers, and nodes behind some of its own."""
    parameter = next(network.parameters())
    for layer in layers.values():
        layer.to(parameter.device, parameter.dtype).train(network.training)
    nodes = [new for node in network.nodes for new in (node, *after.get(node.name, ()))]
    changed = copy.deepcopy(network)
    for path, layer in layers.items():
        set_module(changed, path, layer)
    changed.nodes = nodes
    return changed.train(network.training)
