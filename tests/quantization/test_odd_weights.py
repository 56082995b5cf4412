"""Weights that nobody expects: every stage takes them and the file has them exactly, or they are refused by name."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.artifact import decode, encode
from penjing.artifact.slots import slots
from penjing.errors import PenjingError
from penjing.graph import Network, trace
from penjing.quantization import STAGES
from penjing.training import Stage, Task, Workbench

STAGE_SETTINGS = {
    "half-precision": {},
    "quantize": {"bits": 4},
    "cluster": {"bits": 3, "epochs": 0},
    "calibrated-coding": {"noise": 0.01},
    "binarize": {"epochs": 0},
}


def _network() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    return trace(model, [torch.randn(2, 6)]).eval()


def _task() -> Task:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x[:, :3].argmax(1))
    return Task(DataLoader(data, batch_size=16), DataLoader(data, batch_size=32))


def _applied(label: str, network: Network) -> Network:
    stage: Stage = STAGES[label](**STAGE_SETTINGS[label])
    bench = Workbench(network, _task())
    stage.apply(bench)
    return bench.network


def _same(one: Network, other: Network) -> None:
    for a, b in zip(slots({"": one}), slots({"": other}), strict=True):
        left, right = a.value(), b.value()
        assert (a.name, left.dtype, left.shape) == (b.name, right.dtype, right.shape)
        assert (
            left.contiguous().view(-1).view(torch.uint8).tolist()
            == right.contiguous().view(-1).view(torch.uint8).tolist()
        )


def _filled(value: float) -> Callable[[Network], None]:
    def change(network: Network) -> None:
        with torch.no_grad():
            network.get_submodule("2").weight.fill_(value)

    return change


def _one(value: float, path: str = "2", key: str = "weight") -> Callable[[Network], None]:
    def change(network: Network) -> None:
        with torch.no_grad():
            getattr(network.get_submodule(path), key).view(-1)[0] = value

    return change


def _cast(dtype: torch.dtype) -> Callable[[Network], None]:
    def change(network: Network) -> None:
        network.get_submodule("2").to(dtype)

    return change


def _strided(network: Network) -> None:
    layer = network.get_submodule("2")
    layer.weight = nn.Parameter(torch.randn(10, 5).t()[:, ::2])
    assert not layer.weight.is_contiguous()


def _tied(network: Network) -> None:
    network.get_submodule("2").bias = network.get_submodule("0").bias


SOUND = {"zeros": _filled(0.0), "a constant": _filled(0.3), "strides": _strided, "ties": _tied, "tiny": _filled(1e-30)}
REFUSED = {
    "NaN": (_one(math.nan), "2.weight"),
    "infinity": (_one(-math.inf), "2.weight"),
    "NaN in a bias": (_one(math.nan, "4", "bias"), "4.bias"),
    "bfloat16": (_cast(torch.bfloat16), "2.weight is bfloat16"),
    "float64": (_cast(torch.float64), "2.weight is float64"),
}


@pytest.mark.parametrize("label", STAGES)
@pytest.mark.parametrize("name", SOUND)
def test_what_a_stage_takes_is_in_the_file(label: str, name: str) -> None:
    network = _network()
    SOUND[name](network)
    found = _applied(label, copy.deepcopy(network))
    content = encode(found)
    _same(decode(content), decode(content, for_training=True))
    _same(decode(content), found)
    if name == "zeros" and label != "binarize":  # a binary weight is never 0
        assert not decode(content).get_submodule("2").weight.any()
    if name == "ties":
        again = decode(content)
        assert again.get_submodule("0").bias is again.get_submodule("2").bias


@pytest.mark.parametrize("label", STAGES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_stage_takes_is_refused_by_name(label: str, name: str) -> None:
    network = _network()
    change, said = REFUSED[name]
    change(network)
    before = encode(network)
    _same(decode(before), network)  # a file has it all the same
    with pytest.raises(PenjingError, match=f"^{label}: .*{said}") as told:
        _applied(label, network)
    assert "lr" in str(told.value) or ".float()" in str(told.value)
    assert encode(network) == before


@given(
    bits=st.lists(st.integers(0, (1 << 32) - 1), min_size=15, max_size=15),
    kind=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.bool]),
)
@settings(max_examples=40, deadline=None)
def test_plain_files_hold_any_bits_in_parameters_and_buffers(bits: list[int], kind: torch.dtype) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(bits).to(torch.int32).view(torch.float32).reshape(3, 5))
            self.register_buffer("flag", _as(bits, kind))
            self.register_buffer("one", _as(bits, kind)[0].clone())
            self.register_buffer("none", _as(bits, kind)[:0].reshape(0, 4).clone())

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x @ self.weight, self.flag * 1, self.one * 1, self.none * 1

    owner = Odd()
    nodes = trace(Odd(), [torch.randn(2, 3)]).eval()
    for name in ("weight", "flag", "one", "none"):
        held = nodes._parameters if name == "weight" else nodes._buffers
        if name == "none" and name not in held:
            continue  # nothing of it is needed
        assert name in held
        held[name] = getattr(owner, name)
    _same(decode(encode(nodes)), nodes)


def _as(bits: list[int], kind: torch.dtype) -> Tensor:
    raw = torch.tensor(bits).to(torch.int32)
    return raw % 2 == 0 if kind == torch.bool else raw.view(torch.uint8)[: 8 * 7].view(kind).clone()
