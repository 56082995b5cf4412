"""What can be removed of each structure, known beforehand: which channels stand or fall together, and why others stay."""

import re
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.graph import Grouping, Network, channel_groups, prove_removal, remove_channels, trace
from penjing.graph.network import tensor_at

SIDE, LENGTH = 4, 5


class Made(nn.Module):
    """Named layers and a forward method; the last layer, if there is one, is the head."""

    def __init__(self, forward: Callable[..., Tensor], **layers: object) -> None:
        super().__init__()
        self.step = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x)


def conv(n_in: int, n_out: int, kernel: int = 1, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, **settings)


def read(model: nn.Module, x: Tensor | None = None) -> tuple[Network, Grouping]:
    network = trace(model, [torch.randn(2, 3, SIDE, SIDE) if x is None else x]).eval()
    return network, channel_groups(network)


def sizes(grouping: Grouping) -> dict[str, int]:
    return {group.name: group.n_channels for group in grouping.groups}


def kept_of(tensor: str, model: nn.Module, **chosen: Sequence[int]) -> list[list[int]]:
    """Which indices of a tensor stay, for each of its dimensions, when channels go from the groups of these producers."""
    network, grouping = read(model)
    names = {name: next(g.name for g in grouping.groups if g.producers[0] == name) for name in chosen}
    removal = grouping.removal({names[name]: positions for name, positions in chosen.items()})
    prove_removal(network, removal)
    found = [list(range(n)) for n in tensor_at(network, tensor).shape]
    for piece in removal.slices:
        if f"{piece.path}.{piece.name}" == tensor:
            found[piece.dim] = piece.keep.tolist()
    return found


# --- pictures --------------------------------------------------------------------------------------------------------------


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(Made(lambda m, x: m.b(m.a(x)), a=conv(3, 6), b=conv(6, 2)), {"a": 6}, id="chain"),
        pytest.param(Made(lambda m, x: m.b(m.a(x)), a=conv(3, 11), b=conv(11, 2)), {"a": 11}, id="as many as samples"),
        pytest.param(
            Made(lambda m, x: m.c((y := m.a(x)) + m.b(y)), a=conv(3, 6), b=conv(6, 6), c=conv(6, 2)),
            {"a + b": 6},
            id="shortcut",
        ),
        pytest.param(
            Made(
                lambda m, x: m.c(m.a(x) * m.b(x).mean((2, 3), keepdim=True)), a=conv(3, 6), b=conv(3, 6), c=conv(6, 2)
            ),
            {"a + b": 6},
            id="gate",
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.a(x) * m.b(x)), a=conv(3, 6), b=conv(3, 1), c=conv(6, 2)),
            {"a": 6},
            id="one gate for all",
        ),
        pytest.param(
            Made(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 4), b=conv(3, 2), c=conv(6, 2)),
            {"a": 4, "b": 2},
            id="concatenation",
        ),
        pytest.param(
            Made(lambda m, x: m.c(sum(m.a(x).chunk(2, 1))), a=conv(3, 8), c=conv(4, 2)), {"a": 4}, id="halves added"
        ),
        pytest.param(Made(lambda m, x: m.c(F.glu(m.a(x), 1)), a=conv(3, 8), c=conv(4, 2)), {"a": 4}, id="glu"),
        pytest.param(
            Made(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 4), b=conv(4, 8, 3, groups=4), c=conv(8, 2)),
            {"a": 4},
            id="depthwise with a multiplier",
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 12, 3, groups=4), c=conv(12, 2)),
            {"a + b": 4},
            id="grouped, whole groups",
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 12, 3, groups=2), c=conv(12, 2)),
            {"a": 4, "b": 6},
            id="grouped, the same of every group",
        ),
        pytest.param(
            Made(lambda m, x: m.c(shuffled(m.a(x), 2)), a=conv(3, 8), c=conv(8, 2)),
            {"a": 4},
            id="shuffle of two groups",
        ),
        pytest.param(
            Made(
                lambda m, x: m.d(m.c(shuffled(m.b(m.a(x)), 2))),
                a=conv(3, 12),
                b=conv(12, 12, groups=2),
                c=conv(12, 8, groups=2),
                d=conv(8, 2),
            ),
            {"a": 6, "b": 3, "c": 4},
            id="shuffle between grouped convolutions",
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.n(m.a(x))), a=conv(3, 12), n=nn.GroupNorm(3, 12), c=conv(12, 2)),
            {"a": 3},
            id="group norm",
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.n(m.a(x))), a=conv(3, 12), n=nn.GroupNorm(1, 12), c=conv(12, 2)),
            {"a": 12},
            id="group norm of one group",
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.n(m.a(x))), a=conv(3, 6), n=nn.InstanceNorm2d(6, affine=True), c=conv(6, 2)),
            {"a": 6},
            id="instance norm",
        ),
        pytest.param(
            Made(lambda m, x: m.c(F.pixel_shuffle(m.a(x), 2)), a=conv(3, 12), c=conv(3, 2)),
            {"a": 3},
            id="pixel shuffle",
        ),
        pytest.param(
            Made(lambda m, x: m.c(F.pixel_unshuffle(m.a(x), 2)), a=conv(3, 3), c=conv(12, 2)),
            {"a": 3},
            id="pixel unshuffle",
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 6), b=nn.ConvTranspose2d(6, 4, 2, 2), c=conv(4, 2)),
            {"a": 6, "b": 4},
            id="transposed",
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.a(x).flatten(1)), a=conv(3, 6), c=nn.Linear(6 * SIDE**2, 2)), {"a": 6}, id="flatten"
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.a(x).view(x.shape[0], 4, 2, SIDE, SIDE).amax(2)), a=conv(3, 8), c=conv(4, 2)),
            {"a": 4},
            id="maxout",
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.p(m.a(x))), a=conv(3, 6), p=nn.PReLU(6), c=conv(6, 2)), {"a": 6}, id="prelu"
        ),
        pytest.param(
            Made(lambda m, x: m.c(m.a(x).repeat(1, 2, 1, 1)), a=conv(3, 4), c=conv(8, 2)), {"a": 4}, id="repeated"
        ),
        pytest.param(
            Made(lambda m, x: m.a(m.a(m.stem(x))), stem=conv(3, 4), a=conv(4, 4)), {}, id="a layer that reads itself"
        ),
        pytest.param(
            Made(lambda m, x: m.a(x)[:, :2].mean((1, 2, 3)) - m.a(x)[:, 2:].mean((1, 2, 3)), a=conv(3, 6)),
            {"a": 2, "a #2": 4},
            id="slices of their own",
        ),
        pytest.param(
            Made(lambda m, x: m.c((y := m.a(x)) * y[:, 3:4]), a=conv(3, 6), c=conv(6, 2)), {"a": 5}, id="one taken out"
        ),
        pytest.param(
            Made(lambda m, x: F.conv2d(m.a(x), 2 * m.c.weight.tanh()), a=conv(3, 6), c=conv(6, 2)),
            {"a": 6},
            id="a weight that is computed",
        ),
        pytest.param(
            Made(lambda m, x: m.c(F.normalize(m.a(x), dim=1)), a=conv(3, 6), c=conv(6, 2)), {"a": 6}, id="normalised"
        ),
    ],
)
def test_groups_of_pictures(model: nn.Module, expected: dict[str, int]) -> None:
    network, grouping = read(model)
    assert sizes(grouping) == expected
    assert (prove_removal(network, grouping.removal({name: [0] for name in expected})).effect > 0) == bool(expected)


# --- sequences -------------------------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT) / q.shape[-1] ** 0.5).softmax(-1) @ v


def heads(x: Tensor, n: int) -> Tensor:
    return x.view(*x.shape[:2], n, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def projections(**widths: int) -> dict[str, nn.Module]:
    return {name: nn.Linear(6, width) for name, width in widths.items()}


def fused(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).reshape(*x.shape[:2], 3, 4, 3).permute(2, 0, 3, 1, 4)
    return m.out(joined(F.scaled_dot_product_attention(q, k, v)))


def repeated(m: nn.Module, x: Tensor) -> Tensor:
    k, v = (heads(y, 2).repeat_interleave(2, 1) for y in (m.k(x), m.v(x)))
    return m.out(joined(attend(heads(m.q(x), 4), k, v)))


def expanded(m: nn.Module, x: Tensor) -> Tensor:
    k, v = (heads(y, 2)[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for y in (m.k(x), m.v(x)))
    return m.out(joined(attend(heads(m.q(x), 4), k, v)))


def gated(m: nn.Module, x: Tensor) -> Tensor:
    return x + m.down(F.silu(m.gate(x)) * m.up(x))


class Transformer(nn.Module):
    """Token and position embeddings, one block, an output layer with the weight of the embedding."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(13, 6), nn.Parameter(torch.randn(LENGTH, 6))
        self.norm, self.attend = nn.LayerNorm(6), nn.MultiheadAttention(6, 3, batch_first=True)
        self.middle, self.back = nn.Linear(6, 10), nn.Linear(10, 6)
        self.final, self.head = nn.RMSNorm(6), nn.Linear(6, 13, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places
        y = self.norm(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        return self.head(self.final(x + self.back(F.gelu(self.middle(x)))))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(
            Made(
                lambda m, x: m.out(joined(attend(*(heads(y(x), 4) for y in (m.q, m.k, m.v))))),
                **projections(q=12, k=12, v=20),
                out=nn.Linear(20, 2),
            ),
            {"q + k + v": 4},
            id="heads",
        ),
        pytest.param(Made(fused, qkv=nn.Linear(6, 36), out=nn.Linear(12, 2)), {"qkv": 4}, id="heads of a fused layer"),
        pytest.param(
            Made(
                lambda m, x: m.head(m.attend(*[m.stem(x)] * 3, need_weights=False)[0]),
                stem=nn.Linear(6, 12),
                attend=nn.MultiheadAttention(12, 4, batch_first=True),
                head=nn.Linear(12, 2),
            ),
            {"stem": 12, "attend": 4, "attend.out_proj": 12},
            id="heads of nn.MultiheadAttention",
        ),
        pytest.param(
            Made(
                lambda m, x: m.head(m.attend(m.a(x), y := m.b(x), y, need_weights=False)[0]),
                **projections(a=12, b=12),
                attend=nn.MultiheadAttention(12, 4, batch_first=True),
                head=nn.Linear(12, 2),
            ),
            {"a + b": 12, "attend": 4, "attend.out_proj": 12},  # the columns of one weight read both
            id="heads of cross attention",
        ),
        *[
            pytest.param(
                Made(forward, **projections(q=12, k=6, v=6), out=nn.Linear(12, 2)),
                {"k + v + q": 2},
                id=f"shared heads {how}",
            )
            for how, forward in {"repeated": repeated, "expanded": expanded}.items()
        ],
        pytest.param(
            Made(lambda m, x: m.out(attend(m.q(x), m.k(x), m.v(x))), **projections(q=4, k=4, v=5), out=nn.Linear(5, 2)),
            {"q + k": 4, "v": 5},
            id="one head has widths",
        ),
        pytest.param(
            Made(gated, **projections(gate=7, up=7), down=nn.Linear(7, 6)), {"gate + up": 7}, id="swiglu inside"
        ),
        pytest.param(
            Made(
                lambda m, x: m.head(m.n(gated(m, m.stem(x)))),
                stem=nn.Linear(6, 6),
                **projections(gate=7, up=7),
                down=nn.Linear(7, 6),
                n=nn.LayerNorm(6),
                head=nn.Linear(6, 2),
            ),
            {"stem + down": 6, "gate + up": 7},
            id="residual stream",
        ),
        pytest.param(
            Made(
                lambda m, x: m.head((x + m.b(F.gelu(m.a(x.mT))).mT).mean(1)),
                a=nn.Linear(LENGTH, 9),
                b=nn.Linear(9, LENGTH),
                head=nn.Linear(6, 2),
            ),
            {"a": 9},
            id="mixer of places",
        ),
        pytest.param(
            Made(
                lambda m, x: m.head(torch.einsum("nthk,hkd->ntd", torch.einsum("ntd,dhk->nthk", x, m.a), m.b)),
                a=nn.Parameter(torch.randn(6, 3, 4)),
                b=nn.Parameter(torch.randn(3, 4, 5)),
                head=nn.Linear(5, 2),
            ),
            {"a": 3, "a #2": 4, "b": 5},
            id="einsum",
        ),
    ],
)
def test_groups_of_sequences(model: nn.Module, expected: dict[str, int]) -> None:
    network, grouping = read(model, torch.randn(2, LENGTH, 6))
    assert sizes(grouping) == expected
    assert prove_removal(network, grouping.removal({name: [0] for name in expected})).effect > 0


@pytest.mark.parametrize("tied", [True, False])
def test_groups_of_a_transformer(tied: bool) -> None:
    network, grouping = read(Transformer(tied), torch.randint(0, 13, (2, LENGTH)))
    stream, middle, inside = sorted(grouping.groups, key=lambda group: -len(group.producers))
    assert {"words", "attend.out_proj", "back"} <= set(stream.producers)
    assert {"norm", "final", "head", "attend", "middle"} <= set(stream.layers)
    assert (stream.n_channels, sorted([middle.n_channels, inside.n_channels])) == (6, [3, 10])
    removal = grouping.removal({stream.name: [1, 4]})
    proof = prove_removal(network, removal)
    assert set(proof.changed) == {"norm", "final"}
    small = remove_channels(network, removal)
    assert small.get_submodule("words").weight.shape == small.get_submodule("head").weight.shape == (13, 4)
    assert (small.get_submodule("words").weight is small.get_submodule("head").weight) == tied
    assert tensor_at(small, "places").shape == (LENGTH, 4)
    assert small.get_submodule("norm").normalized_shape == (4,)
    x = torch.randint(0, 13, (3, LENGTH))
    small(x).sum().backward()
    assert small.get_submodule("words").weight.grad.shape == (13, 4)


def test_the_scale_of_attention_stays_when_its_width_shrinks() -> None:
    for function in (attend, F.scaled_dot_product_attention):
        model = Made(
            lambda m, x, f=function: m.out(f(m.q(x), m.k(x), m.v(x))), **projections(q=9, k=9, v=5), out=nn.Linear(5, 2)
        ).eval()
        network, grouping = read(model, torch.randn(2, LENGTH, 6))
        small = remove_channels(network, grouping.removal({"q + k": [0, 2, 3, 7, 8]}))
        stay, x = [1, 4, 5, 6], torch.randn(3, LENGTH, 6)
        scores = model.q(x)[..., stay] @ model.k(x)[..., stay].mT / 3  # 1 / sqrt(9), not 1 / sqrt(4)
        torch.testing.assert_close(small(x), model.out(scores.softmax(-1) @ model.v(x)))


class Masked(nn.Module):
    """Attention that is told at which places to look."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 4) for _ in "qkv")
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = (self.q(x) @ self.k(x).mT).masked_fill(~mask[:, None], float("-inf"))
        return self.out(scores.softmax(-1) @ self.v(x))


def test_a_mask_that_may_hide_everything_proves_what_is_left() -> None:
    torch.manual_seed(0)
    network = trace(Masked(), [torch.randn(2, 2, 6), torch.tensor([[True, True], [True, False]])])
    grouping = channel_groups(network)
    removal = grouping.removal({"q + k": [1], "v": [0, 2]})
    for seed in range(3):
        assert prove_removal(network, removal, seed=seed).effect > 0


# --- where they are ----------------------------------------------------------------------------------------------------------


def test_indices_in_the_reader() -> None:
    joined = Made(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 4), b=conv(3, 2), c=conv(6, 2))
    assert kept_of("c.weight", joined, a=[1], b=[0])[1] == [0, 2, 3, 5]
    flat = Made(lambda m, x: m.c(m.a(x).flatten(1)), a=conv(3, 3), c=nn.Linear(3 * SIDE**2, 2))
    assert kept_of("c.weight", flat, a=[1])[1] == [*range(16), *range(32, 48)]
    shuffle = Made(lambda m, x: m.c(shuffled(m.a(x), 2)), a=conv(3, 8), c=conv(8, 2))
    assert kept_of("a.weight", shuffle, a=[1])[0] == [0, 2, 3, 4, 6, 7]
    assert kept_of("c.weight", shuffle, a=[1])[1] == [0, 1, 4, 5, 6, 7]
    up = Made(lambda m, x: m.c(F.pixel_shuffle(m.a(x), 2)), a=conv(3, 12), c=conv(3, 2))
    assert kept_of("a.weight", up, a=[1])[0] == [0, 1, 2, 3, 8, 9, 10, 11]
    twice = Made(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 4), b=conv(4, 8, 3, groups=4), c=conv(8, 2))
    assert kept_of("b.weight", twice, a=[2])[0] == [0, 1, 2, 3, 6, 7]
    whole = Made(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 12, 3, groups=4), c=conv(12, 2))
    assert kept_of("b.weight", whole, a=[1])[:2] == [[0, 1, 2, 6, 7, 8, 9, 10, 11], [0, 1]]
    every = Made(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 12, 3, groups=2), c=conv(12, 2))
    assert kept_of("b.weight", every, a=[1], b=[5])[:2] == [[0, 1, 2, 3, 4, 6, 7, 8, 9, 10], [0, 2, 3]]


def test_a_shortcut_padded_with_zeros() -> None:
    model = Made(
        lambda m, x: m.c(F.pad((y := m.a(x))[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)) + m.b(y)),
        a=conv(3, 4),
        b=conv(4, 7, 3, stride=2),
        c=conv(7, 2),
    )
    network, grouping = read(model)
    assert sizes(grouping) == {"a + b": 4, "b": 3}
    assert kept_of("b.weight", model, a=[0], b=[1])[:2] == [[0, 2, 3, 4, 6], [1, 2, 3]]
    removal = grouping.removal({"a + b": [0], "b": [1]})
    small = remove_channels(network, removal)
    (pad,) = (node.settings["pad"] for node in small.nodes if node.op == "pad")
    assert pad[-2:] == (1, 1)
    assert small(torch.randn(2, 3, SIDE, SIDE)).shape == (2, 2, 2, 2)


# --- what stays --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.a(x), "it is an output of the network"),
        (lambda m, x: (m.c(y := m.a(x)), y.mean((2, 3))), "it is an output of the network"),
        (lambda m, x: m.c(m.a(x).softmax(1)), r"\(softmax\) runs along it"),
        (lambda m, x: m.c(m.a(x).cumsum(1)), r"\(cumsum\) runs along it"),
        (lambda m, x: m.c(torch.roll(m.a(x), 1, 1)), r"\(roll\) runs along it"),
        (lambda m, x: m.c(m.a(x).flip(1)), r"\(flip\) runs along it"),
        (lambda m, x: m.c((y := m.a(x)) * y.amax(1, keepdim=True)), r"\(amax\) runs along it"),
        (lambda m, x: m.c((y := m.a(x)) + y[:, 3].unsqueeze(1)), r"\(select\) takes one of it"),
        (lambda m, x: m.c(m.a(x)[:, torch.tensor([1, 0, 3, 2, 5, 4])]), r"\(index\) looks up places in it"),
        (lambda m, x: m.c(m.a(x)[:, ::2].repeat(1, 2, 1, 1)), r"\(slice\) takes only some of it"),
        (lambda m, x: m.c(F.layer_norm(m.a(x), (6, SIDE, SIDE))), "it for places"),
        (lambda m, x: m.c(F.local_response_norm(m.a(x), 3)), "it for places"),
        (lambda m, x: m.c(m.a(x) + x.repeat(1, 2, 1, 1)), "has no channels to lose"),
        (lambda m, x: F.conv2d(m.a(x), m.c.weight.softmax(1)), "reads all of it"),
        (lambda m, x: m.c(m.a(x).reshape(x.shape[0], 4, 4, 6).reshape(x.shape[0], 6, 4, 4)), "mixes it with other dim"),
        (lambda m, x: torch.einsum("nchw,ndhw->ncd", y := m.a(x), y), "it is an output of the network"),
    ],
)
def test_what_stays_and_why(forward: Callable, reason: str) -> None:
    _, grouping = read(Made(forward, a=conv(3, 6), c=conv(6, 2)))
    assert re.search(reason, grouping.kept["a"])
    assert "a" not in {path for group in grouping.groups for path in group.producers}


def test_answers_that_compare_samples_are_proved() -> None:
    class Similarities(nn.Module):
        """Every sample with every other, as in CLIP; None beside it."""

        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)) for _ in range(2))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.left(x) @ self.right(y).t(), None

    torch.manual_seed(0)
    network = trace(Similarities(), [torch.randn(2, 6), torch.randn(2, 6)])
    grouping = channel_groups(network)
    proof = prove_removal(network, grouping.removal({group.name: [0] for group in grouping.groups}))
    assert proof.error <= 1e-9
    assert proof.effect > 0


def test_an_answer_that_is_zero_up_to_rounding_is_proved() -> None:
    model = Made(lambda m, x: (y := m.b(m.a(x))) - y * (1 + 1e-16), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    network, grouping = read(model, torch.randn(2, 6))
    assert prove_removal(network, grouping.removal({"a": [0]})).error <= 1e-9


def test_a_bias_that_is_added_apart() -> None:
    model = Made(lambda m, x: m.b(F.linear(x, m.a.weight) + m.a.bias), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    network, grouping = read(model, torch.randn(2, 6))
    assert set(network.state_dict()) == set(model.state_dict())
    assert sizes(grouping) == {"a": 4}
    assert prove_removal(network, grouping.removal({"a": [0, 2]})).effect > 0


def test_group_norm_takes_its_statistics_over_places_too() -> None:
    model = Made(lambda m, x: m.c(m.norm(m.a(x))), a=nn.Linear(6, 4), norm=nn.GroupNorm(1, LENGTH), c=nn.Linear(4, 2))
    grouping = read(model, torch.randn(2, LENGTH, 6))[1]
    assert "a" not in sizes(grouping)
    assert "places" in grouping.kept["a"]
