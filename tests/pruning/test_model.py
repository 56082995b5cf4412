"""Pruning a model in one call: the user's class, smaller, proved, and the model as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import SettingError, TraceError
from penjing.graph import Group, Network
from penjing.pruning import prune_channels


class Net(nn.Module):
    """A shortcut, attention with its number of heads as an attribute, and a gate."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.qkv, self.out = nn.Linear(8, 36), nn.Linear(12, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)))
        x = x + self.branch(x)
        x = x.flatten(2).mT
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2)
        return self.head((x + self.out(mixed)).mean(1))


STREAM, X = "stem + branch + out", torch.randn(2, 3, 4, 4)


def test_the_users_class_comes_back_smaller() -> None:
    model = Net().eval()
    before = copy.deepcopy(model.state_dict())
    pruned = prune_channels(model, (X,), sparsity=0.5)
    small = pruned.model
    assert type(small) is Net
    assert pruned.own_class
    assert (small.heads, small.stem.out_channels, small.qkv.out_features) == (2, 4, 18)
    assert pruned.removed == {STREAM: (4, 8), "qkv": (2, 4)}
    assert pruned.kept == {"head": "it is an output of the network"}
    assert pruned.proof.error <= 1e-9
    assert pruned.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert pruned.macs[1] < 0.4 * pruned.macs[0]
    torch.testing.assert_close(small(X), pruned.network.eval()(X))
    assert list(small.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.heads == 4
    assert "6 of 12 channels in 2 groups are gone" in str(pruned)
    assert "kept whole: head: it is an output" in str(pruned)
    small.train()(X).sum().backward()


def test_the_least_important_go_and_the_rest_is_theirs() -> None:
    model = Net()

    def last(network: Network, group: Group) -> Tensor:
        return -torch.arange(group.n_channels)

    pruned = prune_channels(model, (X,), sparsity=0.3, score=last)  # 0.3 * 8 and 0.3 * 4, rounded down
    assert pruned.removed == {STREAM: (2, 8), "qkv": (1, 4)}
    assert torch.equal(pruned.model.stem.weight, model.stem.weight[:6])
    assert torch.equal(pruned.model.out.weight, model.out.weight[:6, :9])
    rows = torch.arange(36).view(3, 4, 3)[:, :3].flatten()
    assert torch.equal(pruned.model.qkv.weight, model.qkv.weight[rows, :6])


def test_layers_and_limits() -> None:
    assert prune_channels(Net(), (X,), layers=("qkv",)).removed == {"qkv": (2, 4)}
    assert prune_channels(Net(), (X,), layers=("!type:Conv2d", "!out")).removed == {"qkv": (2, 4)}
    assert prune_channels(Net(), (X,), sparsity=0.99, keep_at_least=3).removed == {STREAM: (5, 8), "qkv": (1, 4)}
    graph = prune_channels(Net(), (X,), own_class=False)
    assert graph.model is graph.network
    assert (graph.own_class, graph.why_not) == (False, "not asked for")


class Fixed(nn.Module):
    """A size in the forward method itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh().view(-1, 2, 4).flatten(1))


def test_a_class_that_cannot_hold_it_leaves_the_graph() -> None:
    pruned = prune_channels(Fixed(), (torch.randn(2, 3),))
    assert pruned.model is pruned.network
    assert not pruned.own_class
    assert "Fixed cannot hold the smaller network" in pruned.why_not
    assert pruned.network(torch.randn(5, 3)).shape == (5, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 0}, "sparsity must be between 0 and 1, got 0"),
        ({"sparsity": 1.5}, "Write 0.2 to remove 20 %"),
        ({"keep_at_least": 0}, "keep_at_least must be at least 1, got 0"),
        ({"layers": ("steam",)}, 'no layer matches "steam"; did you mean "stem"'),
        ({"layers": ("head",)}, "no layer matches|no channel can be removed"),
        ({"sparsity": 0.01}, r"no channel can be removed \(head: it is an output"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        prune_channels(Net(), (X,), **settings)  # type: ignore[arg-type]


def test_models_that_cannot_be_pruned() -> None:
    with pytest.raises(SettingError, match=r"no channel can be removed .*: it is an output of the network"):
        prune_channels(nn.Sequential(nn.Linear(3, 2)), (torch.randn(2, 3),))
    with pytest.raises(TraceError, match="must be a tensor"):
        prune_channels(Net(), (None,))
