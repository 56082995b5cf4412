"""A weight that two layers hold is written once by every way to write it, and is still one weight when it is read."""

import copy
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from penjing.artifact import decode, encode
from penjing.graph import Network, trace
from penjing.quantization import Binarize, CalibratedCoding, Cluster, HalfPrecision, Quantize
from penjing.representation import Ties
from penjing.training import Schedule, Stage, Task, Workbench, fit_


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(60, 16), nn.Linear(16, 16)
        self.out = nn.Linear(16, 60, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(self.embed(x).mean(1))))  # type: ignore[no-any-return]


def _ids(n: int) -> Tensor:
    return torch.randint(0, 60, (n, 6))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return trace(Tied(), (_ids(2),)).eval()


@pytest.fixture
def task() -> Task:
    torch.manual_seed(1)
    data = [(_ids(16), torch.randint(0, 60, (16,))) for _ in range(4)]
    return Task(data, data)


@pytest.mark.parametrize(
    "make",
    [
        HalfPrecision,
        lambda: Quantize(bits=4),
        lambda: Quantize(bits=4, epochs=1),
        lambda: Quantize(max_bytes=1500, samples=16),
        lambda: Cluster(bits=4, epochs=1),
        lambda: CalibratedCoding(noise=0.005),
        lambda: Binarize(skip=(), epochs=1),
        lambda: Binarize(skip=(), values="ternary", scale="tensor", epochs=1),
    ],
)
def test_it_is_written_once_and_stays_one(make: Callable[[], Stage], network: Network, task: Task) -> None:
    bench = Workbench(copy.deepcopy(network), task, accelerator=Accelerator(cpu=True))
    make().apply(bench)
    small = bench.network
    embed, out = small.get_submodule("embed"), small.get_submodule("out")
    assert embed.parametrizations["weight"][0] is out.parametrizations["weight"][0]  # type: ignore[index]
    content = encode(small)
    loaded = decode(content)
    assert loaded.get_submodule("embed").weight is loaded.get_submodule("out").weight
    assert torch.equal(loaded.get_submodule("out").weight, out.weight)
    again = decode(content, for_training=True)
    assert encode(again) == content
    fit_(again, task, Schedule(epochs=1, lr=0.01))
    assert torch.equal(again.get_submodule("embed").weight, again.get_submodule("out").weight)
    untied = copy.deepcopy(network)
    untied.get_submodule("out").weight = nn.Parameter(untied.get_submodule("out").weight.detach().clone())
    other = Workbench(untied, task, accelerator=Accelerator(cpu=True))
    if not isinstance(make(), Quantize) or make().max_bytes is None:  # type: ignore[attr-defined]
        make().apply(other)
        assert len(content) < 0.75 * len(encode(other.network))


def test_only_later_places_are_repetitions(network: Network) -> None:
    ties = Ties(network)
    assert not ties.repeats(network.get_submodule("embed"), "weight")
    assert ties.repeats(network.get_submodule("out"), "weight")
    assert not ties.repeats(network.get_submodule("hidden"), "weight")
    ties.share_()  # nothing was represented, so nothing happens
    assert network.get_submodule("embed").weight is network.get_submodule("out").weight
