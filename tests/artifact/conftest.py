"""Networks to put into files: every kind of layer, tensor and representation."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.artifact.slots import slots
from penjing.graph import NEVER, Network, Node, insert_after, trace
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT
from penjing.graph.ops import GATE, PUT, TAKE
from penjing.graph.sizes import BATCH, Size
from penjing.quantization import Scheme, quantize_
from penjing.quantization.cluster import cluster_, cluster_network, cluster_together_
from penjing.representation import Mask, named_weights, represent_

IMAGE = (3, 8, 8)


class Mixed(nn.Module):
    """A shortcut, a concatenation, a layer called twice, operations with settings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=(2, 1), padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, (1, 3), padding=(0, 1), padding_mode="circular")
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.norm(self.stem(x)), 0.2)
        x = self.twice(self.twice(x)) + x * 0.5
        x = torch.cat([self.pool(x), nn.functional.avg_pool2d(x, 2)], 1)
        return nn.functional.log_softmax(self.head(self.drop(x.mean((2, 3)))), -1)


class Attention(nn.Module):
    """Parameters and constants outside of layers, tied weights, open lengths, answers by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.places = nn.Parameter(torch.randn(1, 16, 8))
        self.norm = Scaled(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("far", torch.arange(5) - 2**63)

    def forward(self, ids: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        n, length = ids.shape
        x = self.norm(self.embed(ids) + self.places[:, :length])
        q, k, v = self.qkv(x).view(n, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        far = self.far[:1] // 2**62 + torch.tensor([3, 4])[None]
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return {"logits": self.out(y.transpose(1, 2).reshape(n, length, 8)), "rest": (x, far.expand(n, -1))}


class Scaled(nn.Module):
    """A norm that is read as `nn.LayerNorm`, and a parameter that this class does not have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = (nn.Parameter(torch.randn(width)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias) * self.scale


def _attention() -> Network:
    return trace(Attention(), [torch.randint(0, 20, (2, 5))]).eval()


def _attention_compressed() -> Network:
    network = _attention()
    slot = {slot.name: slot for slot in slots({"": network})}
    represent_(network, "places", Mask(torch.rand(1, 16, 8) < 0.4))
    for path, key in (("embed", "weight"), ("norm", "scale"), ("qkv", "weight")):
        cluster_(network.get_submodule(path), key, 7)
    slot["out.weight"].share_(slot["embed.weight"])
    return network


def _recurrent() -> Network:
    """Layers of several results and inputs, one under two paths, one for three dimensions, lengths in formulas."""
    length, half = Size(("length",)), Size(("length", 2, "//"))
    same = nn.Linear(4, 4)
    modules: dict[str, nn.Module] = {
        "rnn": nn.LSTM(3, 2, 2, batch_first=True, bidirectional=True, dropout=0.5),
        "cell": nn.GRUCell(4, 4),
        "a": same,
        "b.a": same,
        "norm": nn.LayerNorm((2, 2)),
    }
    nodes = [
        Node("x", INPUT),
        Node("rnn", MODULE, ("x",), "rnn"),
        Node("each", "item", ("rnn",), settings={"index": 0}),
        Node("part", "slice", ("each",), settings={"dim": 1, "start": 0, "end": half, "step": 1}),
        Node("mean", "mean", ("part",), settings={"dims": (1,), "keepdim": False}),
        Node("relu_6", INPUT, settings={"dtype": 0}),
        Node("relu", "relu", ("relu_6",)),
        Node("cell", MODULE, ("mean", "relu"), "cell"),
        Node("a", MODULE, ("cell",), "a"),
        Node("b", MODULE, ("a",), "b.a"),
        Node("again", MODULE, ("b",), "a"),
        Node("square", "reshape", ("again",), settings={"shape": (Size(("batch",)), 2, 2)}),
        Node("norm", MODULE, ("square",), "norm"),
        Node("y", OUTPUT, ("norm", "each"), settings={"form": ("list", 1, None, ("tuple", 0, ("dict", "one", 1)))}),
    ]
    return Network(nodes, modules, [(length, 3), (4,)], {"length": 6}).eval()


def _mixed() -> Network:
    return trace(Mixed(), [torch.randn(2, *IMAGE)]).eval()


def _exits() -> Network:
    network = _mixed()
    linear = nn.Linear(6, 4)
    head = [
        Node("mean_0", "mean", ("norm",), settings={"dims": (2, 3), "keepdim": False}),
        Node("linear_0", MODULE, ("mean_0",), "exits.0"),
        Node("exit_0", EXIT, ("linear_0",), settings={"threshold": NEVER}),
    ]
    network = insert_after(network, "norm", head, {"exits.0": linear})
    network.set_thresholds([0.4])
    return network.eval()


def _gates() -> Network:
    """A block that not every sample needs, one of two ways, and an exit that looks at the entropy."""
    modules = {
        "look": nn.Linear(3, 1),
        "block": nn.Conv2d(3, 3, 3, padding=1),
        "choose": nn.Linear(3, 2),
        "near": nn.Conv2d(3, 4, 1),
        "far": nn.Conv2d(3, 4, 5, padding=2),
        "exits.0": nn.Linear(3, 4),
    }
    mean = {"dims": (2, 3), "keepdim": False}
    nodes = [
        Node("x", INPUT),
        Node("mean", "mean", ("x",), settings=mean),
        Node("looked", MODULE, ("mean",), "look"),
        Node("gate", GATE, ("looked",), settings={"column": 0, "rule": "above"}),
        Node("taken", TAKE, ("x", "gate")),
        Node("block", MODULE, ("taken",), "block"),
        Node("put", PUT, ("block", "x", "gate")),
        Node("mean_1", "mean", ("put",), settings=mean),
        Node("linear_0", MODULE, ("mean_1",), "exits.0"),
        Node("exit_0", EXIT, ("linear_0",), settings={"threshold": 0.1, "confidence": "entropy", "label": "near"}),
        Node("chosen", MODULE, ("mean_1",), "choose"),
        Node("first", GATE, ("chosen",), settings={"column": 0, "rule": "largest"}),
        Node("second", GATE, ("chosen",), settings={"column": 1, "rule": "largest"}),
        Node("to_near", TAKE, ("put", "first")),
        Node("near", MODULE, ("to_near",), "near"),
        Node("to_far", TAKE, ("put", "second")),
        Node("far", MODULE, ("to_far",), "far"),
        Node("zeros", "full", settings={"shape": (Size((BATCH,)), 4, 8, 8), "value": 0.0, "dtype": 0}),
        Node("put_near", PUT, ("near", "zeros", "first")),
        Node("put_far", PUT, ("far", "put_near", "second")),
        Node("mean_2", "mean", ("put_far",), settings=mean),
        Node("y", OUTPUT, ("mean_2",)),
    ]
    return Network(nodes, modules, [IMAGE]).eval()


def _masked(in_head: float = 0.0) -> Network:
    network = _mixed()
    for path, density in (("stem", 0.3), ("twice", 1.0), ("head", in_head)):
        layer = network.get_submodule(path)
        represent_(layer, "weight", Mask(torch.rand(layer.weight.shape) < density))
    return network


def _clustered(codes: int = 8, width: int = 52) -> Callable[[], Network]:
    def build() -> Network:
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 40, 1), nn.Flatten()
        )
        model.append(nn.Linear(40 * 16, width)).append(nn.Linear(width, 4))
        network, _ = cluster_network(trace(model, [torch.randn(2, *IMAGE)]).eval(), codes)
        return network

    return build


def _pruned_and_clustered() -> Network:
    network = _masked(0.5)
    for path in ("stem", "head"):
        cluster_(network.get_submodule(path), "weight", 6)
    cluster_together_([(network.get_submodule("twice"), "bias"), (network.get_submodule("head"), "bias")], 4)
    return network


def _grids() -> Network:
    """Steps of tensors, channels and groups, with zeros and without, under a mask, wide and narrow."""
    network = _masked(0.5)
    for full_name, owner, name in list(named_weights(network)):
        if getattr(owner, name).dim() > 1:
            per: Any = ("tensor", "channel", "group")[len(full_name) % 3]
            quantize_(owner, name, Scheme(3 + len(full_name) % 5, per, 2, symmetric=full_name != "head.weight"))
        elif getattr(owner, name).numel() > 1:
            quantize_(owner, name, Scheme(11, "tensor", range="min-max"))
    return network


def _tiny_values() -> Network:
    """Weights so small that half precision thins out: the step of their table is not their largest over 127."""
    network = trace(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 5)), [torch.randn(2, 3)]).eval()
    with torch.no_grad():
        for parameter, steps in zip(list(network.parameters()), (7.02, 12.02, 0.3, 30.1), strict=True):
            largest = steps * 127 * 2.0**-24
            parameter.clamp_(-largest / 4, largest / 4)
            parameter.view(-1)[0] = largest
            cluster_(*_owner(network, parameter), 9)
    return network


def _owner(network: Network, parameter: nn.Parameter) -> tuple[nn.Module, str]:
    return next((owner, name) for _, owner, name in named_weights(network) if getattr(owner, name) is parameter)


def _cast(dtype: torch.dtype) -> Callable[[], Network]:
    def build() -> Network:
        return (
            trace(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(180, 3)), _image())
            .to(dtype)
            .eval()
        )

    return build


def _image() -> list[Tensor]:
    return [torch.randn(2, *IMAGE)]


def _odd_tensors() -> Network:
    """Constant, negative zero, not a number, frozen, without numbers at all; NumPy's integers; two inputs and odd names."""
    import numpy as np

    nodes = [
        Node("x_2", INPUT),
        Node("output_7", INPUT),
        Node("x", MODULE, ("x_2",), "x"),
        Node("b", MODULE, ("output_7",), "ä.b"),
        Node("c", "concat", ("x", "b"), settings={"dim": 1}),
        Node("none", MODULE, ("c",), "none"),
        Node("all", "concat", ("c", "none"), settings={"dim": -1}),
        Node("output", OUTPUT, ("all",)),
    ]
    linear = nn.Linear(int(np.int64(3)), 4)
    linear.in_features = np.int64(3)
    with torch.no_grad():
        linear.weight.fill_(-0.0)
        linear.bias.copy_(torch.tensor([float("nan"), float("inf"), -0.0, 1e-42]))
    linear.requires_grad_(False)
    none = nn.Linear(6, 1)
    none.weight, none.bias, none.out_features = nn.Parameter(torch.empty(0, 6)), nn.Parameter(torch.empty(0)), 0
    return Network(nodes, {"x": linear, "ä.b": nn.Linear(2, 2, bias=False), "none": none}, [(3,), (2,)]).eval()


NETWORKS: dict[str, Callable[[], Network]] = {
    "mixed": _mixed,
    "exits": _exits,
    "gates": _gates,
    "masked": _masked,
    "clustered, 1 value": _clustered(1),
    "clustered, 8 values": _clustered(8),
    "clustered, 256 values": _clustered(256, 3),
    "pruned and clustered": _pruned_and_clustered,
    "grids": _grids,
    "tiny values": _tiny_values,
    "float64": _cast(torch.float64),
    "float16": _cast(torch.float16),
    "bfloat16": _cast(torch.bfloat16),
    "odd tensors": _odd_tensors,
    "attention": _attention,
    "attention, compressed": _attention_compressed,
    "recurrent": _recurrent,
}


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> Network:
    return copy.deepcopy(_build(request.param))


@pytest.fixture
def build() -> Callable[[str], Network]:
    """One of the networks by its name."""
    return lambda name: copy.deepcopy(_build(name))


@functools.cache
def _build(name: str) -> Network:
    torch.manual_seed(0)
    built = NETWORKS[name]()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return built
