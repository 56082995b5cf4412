"""Layers that take nothing but signs: surgery for binarized networks.

    ... norm ── ReLU ── pool ── dropout ── layer        becomes        ... norm ── pool ── sign ── dropout ── layer

A ReLU in front would leave no sign but +1, so the layer reads what the ReLU reads; others still read the ReLU.

Source: Hubara et al. 2016 (Binarized Neural Networks), arXiv:1602.02830, section 1; the order of norm and sign, Rastegari et
al. 2016 (XNOR-Net), arXiv:1603.05279, section 3.2. Deviates: no scales for the inputs (XNOR-Net's K); the norm behind the layer
has them.
"""

import copy
from collections.abc import Collection, Iterator
from dataclasses import replace

from penjing.graph import Network, Node
from penjing.graph.modules import kind_of
from penjing.graph.network import EXIT, MODULE, OUTPUT, module_at, needed, word_of

MATRICES = ("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
"""Layers whose weight is a matrix or filters."""
_NOT_NEGATIVE = ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus")
_SHAPES = ("identity", "flatten", "reshape", "permute")


def ends(network: Network) -> tuple[set[str], set[str]]:
    """The layers with matrices or filters before which there is none, and those after which there is none, by path."""
    weighted = {node.name for node in network.nodes if node.op == MODULE and _kind(network, node) in MATRICES}
    behind: set[str] = set()  # nodes that one of them comes before
    for node in network.nodes:
        if any(name in behind or name in weighted for name in node.inputs):
            behind.add(node.name)
    before: set[str] = set()  # nodes that one of them comes after
    for node in reversed(network.nodes):
        if node.name in before or node.name in weighted:
            before.update(node.inputs)
    paths = {node.name: node.path for node in network.nodes}
    return {paths[name] for name in weighted - behind}, {paths[name] for name in weighted - before}


def with_sign_inputs(network: Network, paths: Collection[str]) -> Network:
    """A network in which these layers take the signs of what they took, see above; layers with one input share one sign."""
    changed = copy.deepcopy(network)
    made: dict[str, str] = {}
    for node in network.nodes:
        if node.op == MODULE and node.path in paths:
            _take_signs_(changed, node.name, made)
    changed.nodes = needed(changed.nodes)
    called = {node.path for node in changed.nodes if node.op == MODULE}
    for path in set(network.layers()) - called:
        parent, _, name = path.rpartition(".")
        del module_at(changed, parent)._modules[name]
    return changed.train(network.training)


def without_norm_behind(network: Network, paths: Collection[str]) -> list[str]:
    """Those of the layers whose result is read by something other than a norm, directly or behind a pooling."""
    found = []
    for node in network.nodes:
        if node.op == MODULE and node.path in paths and node.path not in found:
            readers = list(_readers(network, node.name))
            if not readers or not all("norm" in word_of(network, reader) for reader in readers):
                found.append(node.path)
    return found


def without_norm_before(network: Network, paths: Collection[str]) -> list[str]:
    """Those of the layers whose signs are of something other than the result of a norm, directly or behind a pooling."""
    nodes = {node.name: node for node in network.nodes}
    found = []
    for node in network.nodes:
        if node.op == MODULE and node.path in paths and node.path not in found:
            source = nodes[node.inputs[0]]
            while source.op == "sign_through" or _passes(network, source):
                source = nodes[source.inputs[0]]
            if "norm" not in word_of(network, source):
                found.append(node.path)
    return found


def _take_signs_(network: Network, name: str, made: dict[str, str]) -> None:
    nodes = {node.name: node for node in network.nodes}
    reader = nodes[name]
    while "dropout" in word_of(network, nodes[reader.inputs[0]]) and len(network.consumers(reader.inputs[0])) == 1:
        reader = nodes[reader.inputs[0]]
    source = reader.inputs[0]
    new: list[Node] = []
    if source not in made:
        signed, chain = source, []
        above = nodes[source]
        while _passes(network, above):
            chain.append(above)
            above = nodes[above.inputs[0]]
        if word_of(network, above) in _NOT_NEGATIVE:
            signed = above.inputs[0]
            alone = all(len(network.consumers(link.name)) == 1 for link in chain)
            for link in reversed(chain):
                own = link.name if alone else network.fresh_name(f"{link.name}_unrectified")
                new.append(replace(link, name=own, inputs=(signed,)))
                signed = own
        made[source] = network.fresh_name(f"{signed}_sign")
        new.append(Node(made[source], "sign_through", (signed,)))
    renewed = {link.name for link in new}
    listed: list[Node] = []
    for node in network.nodes:
        if node.name not in renewed:
            listed.append(replace(node, inputs=(made[source],)) if node.name == reader.name else node)
        if node.name == source:
            listed += new
    network.nodes = tuple(listed)


def _readers(network: Network, name: str) -> Iterator[Node]:
    """Who reads a result, directly or behind what leaves the kind of values as it is."""
    for node in network.consumers(name):
        if _passes(network, node):
            yield from _readers(network, node.name)
        else:
            yield node


def _passes(network: Network, node: Node) -> bool:
    """A pooling, a dropout or another shape: what is not negative stays so."""
    if node.op in (EXIT, OUTPUT):
        return False
    word = word_of(network, node)
    return word in _SHAPES or "pool" in word or "dropout" in word


def _kind(network: Network, node: Node) -> str:
    return kind_of(network.get_submodule(node.path)) or ""
