"""Makes the golden files that are not there yet. A file that is there stays as it is for ever, and so do its values.

    python tests/artifact/golden/make.py

Together they hold every codec, every way to write codes and every record that a graph can have; `test_golden.py` says so if
one is missing. Add a network here when the format learns something new; never delete one.
"""

import hashlib
import json
import runpy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from penjing.artifact import Artifact, Packing, encode, open_artifact, pack
from penjing.artifact.codecs.codes import CONTEXT, DEPENDENT, HUFFMAN, OWN, PACKED, SHARED, SHARED_SAME, Codes
from penjing.graph import Network, Node
from penjing.graph.modules import MODULES, kind_of
from penjing.graph.network import INPUT, MODULE, OUTPUT
from penjing.graph.ops import OPERATIONS
from penjing.quantization import Scheme, Search, binarize_, cluster_, quantize_
from penjing.quantization.error_feedback import rounded_with_feedback
from penjing.representation import Grid, Half, Mask, represent_

FOLDER = Path(__file__).parent
_SETTINGS: dict[str, Any] = {
    "dim": -1,
    "dims": (0, -1),
    "shape": (2, -1),
    "keepdim": True,
    "mode": "nearest",
    "approximate": "tanh",
    "equation": "ab,bc->ac",
    "dtype": 2,
    "value": 0.1,
}


def _chain(layers: dict[str, nn.Module]) -> Network:
    nodes = [Node("x", INPUT)]
    for name in layers:
        nodes.append(Node(f"n_{name}", MODULE, (nodes[-1].name,), name))
    nodes.append(Node("y", OUTPUT, (nodes[-1].name,)))
    return Network(nodes, layers, [(8,)]).eval()


@contextmanager
def _written(ways: list[int]) -> Iterator[None]:
    """Codes are written in these ways, one tensor after another."""
    left = iter(ways)
    with patch.object(Codes, "variant", lambda self, sink: next(left)):
        yield


def _codebooks() -> bytes:
    layers = {f"l{i}": nn.Linear(8, 12, bias=False) for i in range(6)}
    for i, layer in enumerate(layers.values()):
        if i == 4:
            represent_(layer, "weight", Mask(torch.rand(12, 8) < 0.5))
        if i != 3:
            cluster_(layer, "weight", 5 + i)
    layers["l3"] = nn.Linear(8, 12, bias=False)
    table = layers["l2"].parametrizations.weight[-1]  # type: ignore[index, union-attr]
    represent_(layers["l3"], "weight", type(table)(table.codes.flip(0), table.centroids, zero=table.zero))
    with _written([PACKED, HUFFMAN, SHARED, SHARED_SAME, OWN, CONTEXT]):
        return encode(_chain(dict(layers)))


def _grids() -> bytes:
    layers = {f"l{i}": nn.Linear(8, 12, bias=False) for i in range(5)}
    schemes = (
        Scheme(3, "tensor"),
        Scheme(4, "channel", symmetric=False),
        Scheme(5, "group", 4),
        Scheme(2, "channel"),
        Scheme(12, "group", 3, symmetric=False),
    )
    for i, (layer, scheme) in enumerate(zip(layers.values(), schemes, strict=True)):
        if i == 3:
            represent_(layer, "weight", Mask(torch.rand(12, 8) < 0.5))
        quantize_(layer, "weight", scheme)
    layers["l5"] = nn.Linear(8, 12, bias=False)
    codes = rounded_with_feedback(torch.randn(12, 8).double(), torch.tensor(0.2), torch.eye(8), dependent=True)
    columns = 2.0 ** torch.randint(-2, 3, (1, 8))
    represent_(layers["l5"], "weight", Grid(codes, torch.full((12, 1), 0.25), columns=columns))
    with _written([PACKED, HUFFMAN, SHARED, OWN, CONTEXT, DEPENDENT]):
        return encode(_chain(dict(layers)))


def _signs_and_scaled_codebooks() -> bytes:
    layers = {f"l{i}": nn.Linear(8, 12, bias=False) for i in range(6)}
    binarize_(layers["l0"], "weight", "binary", "none")
    binarize_(layers["l1"], "weight", "binary", "filter")
    binarize_(layers["l2"], "weight", "ternary", "tensor")
    represent_(layers["l3"], "weight", Mask(torch.rand(12, 8) < 0.5))
    binarize_(layers["l3"], "weight", "ternary", "filter")
    cluster_(layers["l4"], "weight", 5, Search(per="channel"))
    represent_(layers["l5"], "weight", Mask(torch.rand(12, 8) < 0.5))
    cluster_(layers["l5"], "weight", 5, Search(per="channel"))
    return encode(_chain(dict(layers)))


def _masks_and_halves() -> bytes:
    layers = {f"l{i}": nn.Linear(40, 30) for i in range(4)}
    represent_(layers["l0"], "weight", Mask(torch.rand(30, 40) < 0.5))
    with torch.no_grad():
        layers["l1"].weight.copy_(torch.randint(0, 3, (30, 40)))
        layers["l2"].bias.fill_(0.5)
    represent_(layers["l1"], "weight", Mask(torch.rand(30, 40) < 0.9))
    represent_(layers["l2"], "weight", Half("float16"))
    represent_(layers["l3"], "weight", Half("bfloat16"))
    layers["l4"] = nn.Linear(3, 3, bias=False)
    layers["l5"] = nn.Linear(3, 3, bias=False)
    layers["l5"].weight = layers["l4"].weight
    return encode(_chain(dict(layers)))


def _modules() -> bytes:
    layers = {name: kind.build(dict(kind.settings)) for name, kind in MODULES.items()}
    layers |= {"wide": nn.Conv2d(2, 4, (1, 3), padding="same", groups=2, padding_mode="reflect", bias=False)}
    return encode(_chain(dict(layers)))


def _operations(names: Sequence[str] = tuple(OPERATIONS)) -> bytes:
    nodes = [Node("x", INPUT), Node("z", INPUT)]
    for name in names:
        operation = OPERATIONS[name]
        n = 2 if operation.n_inputs is None else operation.n_inputs
        settings = {key: _SETTINGS.get(key, 1) for key in operation.settings}
        nodes.append(Node(f"n_{name}", name, tuple(node.name for node in nodes[len(nodes) - n :]), settings=settings))
    nodes.append(Node("y", OUTPUT, (nodes[-1].name,)))
    return encode(Network(nodes, {}, [(2, 3), (4,)]))


def _types() -> bytes:
    torch.manual_seed(0)
    tensors = {
        "a.weight": torch.randn(40, 50),
        "a": torch.tensor([float("nan"), float("inf"), -0.0]),
        "half": torch.randn(40, 50).bfloat16(),
        "f8": torch.randn(9).to(torch.float8_e4m3fn),
        "u16": torch.arange(9).to(torch.uint16),
        "yes": torch.rand(9) > 0.5,
        "n": torch.tensor(3),
        "none": torch.empty(0, 5),
        "zeros": torch.zeros(30, 30),
    }
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, f"{folder}/in", {"format": "pt"})
        pack(f"{folder}/in", f"{folder}/out", Packing(step=0.2))
        return Path(folder, "out").read_bytes()


def _blocks() -> bytes:
    """Operations that belong to blocks, to none, to one above that of the layer before, and to one without layers."""
    layers: dict[str, nn.Module] = {"a.b.one": nn.Linear(4, 4), "a.b.two": nn.Linear(4, 4)}
    nodes = [
        Node("x", INPUT),
        Node("first", "relu", ("x",), scope="start.inner"),
        Node("one", MODULE, ("first",), "a.b.one"),
        Node("inside", "relu", ("one",), scope="a.b"),
        Node("two", MODULE, ("inside",), "a.b.two"),
        Node("sum", "add", ("two", "first"), scope="a"),
        Node("aside", "tanh", ("sum",), scope="side"),
        Node("last", "relu", ("aside",)),
        Node("y", OUTPUT, ("last",)),
    ]
    return encode(Network(nodes, layers, [(4,)]).eval())


def _several() -> bytes:
    networks = runpy.run_path(str(FOLDER.parent / "conftest.py"))["NETWORKS"]
    return encode({"one": networks["recurrent"](), "two": networks["attention, compressed"]()})


def _of_tests(name: str) -> Callable[[], bytes]:
    return lambda: encode(runpy.run_path(str(FOLDER.parent / "conftest.py"))["NETWORKS"][name]())


FILES: dict[str, Callable[[], bytes]] = {
    "0.2.0-codebooks": _codebooks,
    "0.2.0-grids": _grids,
    "0.2.0-signs-and-scaled-codebooks": _signs_and_scaled_codebooks,
    "0.2.0-masks-and-halves": _masks_and_halves,
    "0.2.0-modules": _modules,
    "0.2.0-operations": _operations,
    "0.2.0-sign": lambda: _operations(["sign_through"]),
    "0.2.0-fake-quantize": lambda: _operations(["fake_quantize"]),
    "0.2.0-tensors": _types,
    "0.2.0-several": _several,
    "0.2.0-blocks": _blocks,
    "0.2.0-exits": _of_tests("exits"),
    "0.2.0-gates": _of_tests("gates"),
    "0.2.0-recurrent": _of_tests("recurrent"),
    "0.2.0-odd": _of_tests("odd tensors"),
    "0.2.0-float64": _of_tests("float64"),
}
"""By version of penjing that could first read it. Those of 0.1.0 were written by 0.1.0 itself."""


def values(path: Path) -> dict[str, Any]:
    """What is in a file: tensors by name, what their networks do with them and which blocks that belongs to, as SHA-256."""
    with open_artifact(path) as artifact:
        return {"tensors": _tensors(artifact), "nodes": _nodes(artifact), "scopes": _scopes(artifact)}


def _tensors(artifact: Artifact) -> dict[str, str]:
    return {name: _digest(artifact.tensor(name)) for name in artifact.names}


def _digest(value: Tensor) -> str:
    data = value.detach().contiguous().view(-1)
    data = data.clone().as_strided((1,), (1,)) if data.numel() == 1 else data
    text = f"{value.dtype} {tuple(value.shape)} ".encode()
    return hashlib.sha256(text + data.view(torch.uint8).numpy().tobytes()).hexdigest()


def _nodes(artifact: Artifact) -> dict[str, str]:
    if artifact.tensors is not None:
        return {}
    found = {}
    for name, network in artifact.networks().items():
        text = [f"{n.op} {n.inputs} {n.path} {sorted(n.settings.items())}" for n in network.nodes]
        layers = []
        for layer_path, layer in network.layers().items():
            kind = MODULES[str(kind_of(layer))]
            layers.append(f"{layer_path} {kind_of(layer)} {sorted(kind.describe(layer).items())}")
        found[name] = hashlib.sha256(repr((text, layers, network.input_shapes)).encode()).hexdigest()
    return found


def _scopes(artifact: Artifact) -> dict[str, str]:
    networks = {} if artifact.tensors is not None else artifact.networks()
    return {
        name: hashlib.sha256(repr([node.scope for node in network.nodes]).encode()).hexdigest()
        for name, network in networks.items()
    }


def main() -> None:
    """Write what is missing, and its values."""
    index = FOLDER / "values.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    for name, build in FILES.items():
        path = FOLDER / f"{name}.pj"
        if not path.exists():
            torch.manual_seed(0)
            path.write_bytes(build())
    for path in sorted(FOLDER.glob("*.pj")):
        known.setdefault(path.stem, values(path))
    index.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
