"""Files of networks that nobody here wrote: tied tensors, parameters outside layers, open sizes, several networks, cells."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import penjing as pj
from penjing.artifact import decode, encode
from penjing.artifact.slots import slots
from penjing.errors import ArtifactError
from penjing.graph import Network, Node, channel_groups, prove_removal, remove_channels, trace
from penjing.graph.network import INPUT, MODULE, OUTPUT
from penjing.graph.ops import DTYPES
from penjing.representation import Codebook, represent_


class Attention(nn.Module):
    """One block of a language model: learned places, heads that share keys, a table of biases, a tied output."""

    def __init__(self, vocabulary: int = 50, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(1, 32, width))
        self.query, self.key, self.value = (
            nn.Linear(width, width),
            nn.Linear(width, width // 2),
            nn.Linear(width, width // 2),
        )
        self.bias = nn.Parameter(torch.randn(heads, 1, 1))
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.up = parametrizations.weight_norm(nn.Linear(width, 24))
        self.down = nn.Linear(24, width, bias=False)
        self.out = nn.Linear(width, vocabulary, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        n, length = ids.shape
        x = self.embed(ids) + self.places[:, :length]
        q = self.query(x).view(n, length, self.heads, -1).transpose(1, 2)
        k, v = (layer(x).view(n, length, self.heads // 2, -1).transpose(1, 2) for layer in (self.key, self.value))
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        mask = torch.ones(length, length).tril().log() + self.bias
        y = F.scaled_dot_product_attention(q, k, v, mask.expand(n, -1, -1, -1))
        x = self.norm(x + self.mix(y.transpose(1, 2).reshape(n, length, -1)))
        x = x + self.down(F.gelu(self.up(x)))
        return {"logits": self.out(x), "last": x}


def _traced() -> Network:
    torch.manual_seed(0)
    return trace(Attention(), [torch.randint(0, 50, (2, 7))]).eval()


def _ids(n: int, length: int) -> Tensor:
    return torch.randint(0, 50, (n, length), generator=torch.Generator().manual_seed(1))


def test_it_comes_back_bit_for_bit_and_goes_on(tmp_path: Path) -> None:
    network = _traced()
    size = pj.save(network, tmp_path / "a.pj")
    assert size == (tmp_path / "a.pj").stat().st_size
    loaded = pj.load(tmp_path / "a.pj")
    for n, length in ((1, 7), (3, 12)):
        for found, expected in zip(loaded(_ids(n, length)).values(), network(_ids(n, length)).values(), strict=True):
            assert torch.equal(found, expected)
    assert loaded(_ids(1, 3)).logits.shape == (1, 3, 50)
    mine = network.state_dict()
    assert {name: value.tolist() for name, value in loaded.state_dict().items()} == {
        n: v.tolist() for n, v in mine.items()
    }
    assert encode(loaded) == (tmp_path / "a.pj").read_bytes()
    F.cross_entropy(loaded.train()(_ids(2, 5)).logits.flatten(0, 1), _ids(2, 5).flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loaded.parameters())
    grouping = channel_groups(loaded)
    removal = grouping.removal({g.name: list(range(g.n_channels // 2)) for g in grouping.groups})
    assert prove_removal(loaded, removal).error <= 1e-9
    again = decode(encode(remove_channels(loaded, removal)))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in loaded.parameters())


def test_what_is_tied_is_there_once_and_stays_tied() -> None:
    network = _traced()
    untied = trace(Attention(), [_ids(2, 7)])
    untied.out.weight = nn.Parameter(untied.embed.weight.detach() + 1)
    assert len(encode(network)) < len(encode(untied)) - 50 * 16 * 2
    loaded = decode(encode(network))
    assert loaded.out.weight is loaded.embed.weight


def test_a_tied_codebook_stays_one(tmp_path: Path) -> None:
    network = _traced()
    codes = torch.randint(0, 4, (50, 16))
    represent_(network.embed, "weight", Codebook(codes, torch.tensor([-1.0, -0.25, 0.5, 1.0])))
    places = {slot.name: slot for slot in slots({"": network})}
    places["out.weight"].share_(places["embed.weight"])
    content = encode(network)
    plain, coded = decode(content), decode(content, for_training=True)
    assert torch.equal(plain.out.weight, plain.embed.weight)
    assert plain.out.weight is plain.embed.weight
    assert coded.out.parametrizations.weight[0] is coded.embed.parametrizations.weight[0]
    assert torch.equal(coded(_ids(2, 5)).logits, plain(_ids(2, 5)).logits)
    assert encode(coded) == content


def test_a_process_without_the_class_can_use_it(tmp_path: Path) -> None:
    network = _traced()
    pj.save(network, tmp_path / "a.pj")
    torch.save(network(_ids(3, 9)).logits, tmp_path / "expected.pt")
    code = (
        "import sys, torch, penjing as pj\n"
        "network = pj.load(sys.argv[1])\n"
        "ids = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))\n"
        "assert torch.equal(network(ids).logits, torch.load(sys.argv[2]))\n"
        "assert 'test_any_network' not in sys.modules\n"
    )
    files = [str(tmp_path / "a.pj"), str(tmp_path / "expected.pt")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_file_goes_back_into_the_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attention().eval()
    cut = pj.prune_channels(model, (_ids(2, 7),))
    assert isinstance(cut.model, Attention)
    assert cut.model.heads == 2
    pj.save(cut.network, tmp_path / "a.pj")
    back = pj.load_into(Attention(), tmp_path / "a.pj", (_ids(2, 7),)).eval()
    assert isinstance(back, Attention)
    assert back.out.weight is back.embed.weight
    assert torch.equal(back(_ids(3, 11))["logits"], cut.model(_ids(3, 11))["logits"])


def test_one_tensor_can_be_read_alone(tmp_path: Path) -> None:
    network = _traced()
    pj.save(network, tmp_path / "a.pj")
    artifact = pj.open_artifact(tmp_path / "a.pj")
    state = network.state_dict()
    assert set(artifact.names) == set(state)
    for name in reversed(artifact.names):
        assert artifact.entry(name).shape == tuple(state[name].shape)
        assert artifact.entry(name).dtype == state[name].dtype
        assert torch.equal(artifact.tensor(name), state[name])
    with pytest.raises(ArtifactError, match='no tensor "embed"'):
        artifact.tensor("embed")


def test_several_networks_share_what_they_share(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, head = nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(6, 2)
    table = nn.Parameter(torch.randn(1, 6))

    def net(*names: str) -> Network:
        nodes, source = [Node("x", INPUT)], "x"
        for name in names:
            nodes.append(Node(name, MODULE, (source,), name))
            source = name
        nodes += [Node("t", "tensor", (), "table"), Node("sum", "add", (source, "t"))] if len(names) == 1 else []
        nodes.append(Node("y", OUTPUT, (nodes[-1].name,)))
        modules = {"encoder": encoder[0], "head": head}
        return Network(
            nodes, {n: modules[n] for n in names}, [(4,)], tensors={"table": table} if len(names) == 1 else {}
        )

    both = {"encode": net("encoder"), "classify": net("encoder", "head")}
    pj.save(both, tmp_path / "a.pj")
    loaded = pj.load_networks(tmp_path / "a.pj")
    x = torch.randn(3, 4)
    for name, network in both.items():
        assert torch.equal(loaded[name](x), network.eval()(x))
    assert loaded["encode"].encoder is loaded["classify"].encoder
    alone = len(encode(both["encode"])) + len(encode(both["classify"]))
    assert (tmp_path / "a.pj").stat().st_size < alone - 4 * 6 * 3
    with pytest.raises(ArtifactError, match="encode, classify; read it with load_networks"):
        pj.load(tmp_path / "a.pj")


def test_recurrent_cells_travel() -> None:
    torch.manual_seed(0)
    modules = {"cell": nn.LSTMCell(3, 5), "rnn": nn.GRU(5, 4, batch_first=True)}
    nodes = [
        Node("x", INPUT),
        Node("state", MODULE, ("x",), "cell"),
        Node("h", "item", ("state",), settings={"index": 0}),
        Node("steps", "reshape", ("h",), settings={"shape": (-1, 1, 5)}),
        Node("answers", MODULE, ("steps",), "rnn"),
        Node("last", "item", ("answers",), settings={"index": 0}),
        Node("y", OUTPUT, ("last",)),
    ]
    network = Network(nodes, modules, [(3,)]).eval()
    loaded = decode(encode(network))
    x = torch.randn(2, 3)
    assert torch.equal(loaded(x), network(x))
    loaded.train()(x).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64])
def test_inputs_keep_their_type(dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2).double()
    kind = DTYPES.index(dtype)
    settings = {"dtype": kind} if dtype.is_floating_point else {"dtype": kind, "low": 0, "high": 1}
    wide = {"dtype": DTYPES.index(torch.float64)}
    nodes = [Node("x", INPUT, settings=settings), Node("wide", "cast", ("x",), settings=wide)]
    network = Network([*nodes, Node("a", MODULE, ("wide",), "a"), Node("y", OUTPUT, ("a",))], {"a": layer}, [(3,)])
    loaded = decode(encode(network))
    assert dict(loaded.nodes[0].settings) == settings
    (x,) = loaded.random_inputs(2, torch.Generator())
    assert x.dtype == dtype
    assert torch.equal(loaded(x), network(x))


def test_a_resnet_20_has_a_graph_of_less_than_1500_bytes(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self, before: int, channels: int) -> None:
            super().__init__()
            stride = channels // before
            self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels)
            self.stride = stride

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.stride == 2:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))
            return F.relu(x + y)

    class ResNet20(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
            for k in range(3):
                part = widths[3 * k : 3 * k + 4]
                setattr(self, f"layer{k + 1}", nn.Sequential(*(Block(a, b) for a, b in pairwise(part))))
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
            return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))

    pj.save(trace(ResNet20(), [torch.randn(2, 3, 32, 32)]), tmp_path / "a.pj")
    assert pj.open_artifact(tmp_path / "a.pj").graph_bytes < 500
