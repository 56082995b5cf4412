"""Random modules as users write them: read, cut, proved, cut again, trained."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from penjing.errors import SurgeryError
from penjing.graph import Network, Removal, channel_groups, into_own_class, prove_removal, remove_channels, trace
from penjing.graph.network import tensor_at

WORDS, CLASSES = 13, 3
Pick = Callable[[Sequence[Any]], Any]


class Block(nn.Module):
    """A forward method as a function of the module and its input; children, parameters and settings by name."""

    def __init__(self, function: Callable[..., Tensor], **parts: object) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


def split_of(n: int, pick: Pick, below: int = 5) -> int:
    """A divisor of n, larger than 1 where there is one."""
    return pick([k for k in range(2, below) if n % k == 0] or [1])


# --- pictures, (batch, c, h, w) -------------------------------------------------------------------------------------------


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def windowed(m: nn.Module, x: Tensor, side: int = 2, shift: int = 1) -> Tensor:
    """Swin: roll, cut into windows, mix within each, put back."""
    x = x.permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    x = torch.roll(x, (-shift, -shift), (1, 2))
    x = x.view(n, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, c)
    x = m.mix(x)
    x = x.view(n, h // side, w // side, side, side, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
    return torch.roll(x, (shift, shift), (1, 2)).permute(0, 3, 1, 2)


def padded_shortcut(m: nn.Module, x: Tensor) -> Tensor:
    """ResNet for CIFAR, option A: half the places, zeros for the channels that there are more."""
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + m.conv(x)


def shuffle_unit(m: nn.Module, x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return shuffled(torch.cat([left, m.branch(right)], 1), 2)


PICTURES: dict[str, Callable[[int, int, Pick], nn.Module]] = {
    "conv": lambda c, s, p: nn.Conv2d(c, p([4, 6, 8, 11]), 3, padding=1, bias=p([True, False])),
    "grouped": lambda c, s, p: nn.Conv2d(c, c * p([1, 2]) if c < 9 else c, 3, padding=1, groups=split_of(c, p)),
    "depthwise": lambda c, s, p: nn.Conv2d(c, c * (p([1, 2]) if c < 9 else 1), 3, padding=1, groups=c),
    "transposed": lambda c, s, p: nn.ConvTranspose2d(c, 6, 2, stride=1 + (s < 5)),
    "transposed, grouped": lambda c, s, p: nn.ConvTranspose2d(c, c, 3, padding=1, groups=split_of(c, p)),
    "batch norm": lambda c, s, p: nn.BatchNorm2d(c, affine=p([True, False])),
    "instance norm": lambda c, s, p: nn.InstanceNorm2d(c, affine=p([True, False])),
    "group norm": lambda c, s, p: nn.GroupNorm(split_of(c, p), c),
    "one group norm": lambda c, s, p: nn.GroupNorm(1, c),
    "layer norm": lambda c, s, p: Block(
        lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(c, bias=p([True, False]))
    ),
    "layer norm by hand": lambda c, s, p: Block(
        lambda m, x: (
            m.gamma[:, None, None]
            * (x - x.mean(1, keepdim=True))
            / torch.sqrt(x.var(1, keepdim=True, correction=0) + 1e-5)
        ),
        gamma=parameter(c),
    ),
    "prelu": lambda c, s, p: nn.PReLU(p([1, c])),
    "gelu": lambda c, s, p: nn.GELU(),
    "residual": lambda c, s, p: Block(
        lambda m, x: x + m.b(F.silu(m.a(x))), a=nn.Conv2d(c, 5, 1), b=nn.Conv2d(5, c, 3, padding=1)
    ),
    "squeeze and excite": lambda c, s, p: Block(
        lambda m, x: x * torch.sigmoid(m.b(F.silu(m.a(x.mean((2, 3), keepdim=True))))),
        a=nn.Conv2d(c, 4, 1),
        b=nn.Conv2d(4, c, 1),
    ),
    "excite by linear layers": lambda c, s, p: Block(
        lambda m, x: x * torch.sigmoid(m.b(F.silu(m.a(F.adaptive_avg_pool2d(x, 1).flatten(1)))))[:, :, None, None],
        a=nn.Linear(c, 4),
        b=nn.Linear(4, c),
    ),
    "layer scale": lambda c, s, p: Block(
        lambda m, x: x + m.conv(x) * m.gamma, conv=nn.Conv2d(c, c, 1), gamma=parameter(c, 1, 1)
    ),
    "concat": lambda c, s, p: Block(
        lambda m, x: torch.cat([m.a(x), x, m.b(x)], 1), a=nn.Conv2d(c, 2, 1), b=nn.Conv2d(c, 3, 3, padding=1)
    ),
    "shuffle": lambda c, s, p: Block(lambda m, x: shuffled(x, m.groups), groups=split_of(c, p)),
    "shuffle unit": lambda c, s, p: (
        Block(shuffle_unit, branch=nn.Conv2d(c // 2, c - c // 2, 3, padding=1)) if c % 2 == 0 else nn.Identity()
    ),
    "glu": lambda c, s, p: Block(lambda m, x: F.glu(m.conv(x), 1), conv=nn.Conv2d(c, 10, 1)),
    "gate": lambda c, s, p: Block(
        lambda m, x: torch.sigmoid(m.a(x)) * m.b(x), a=nn.Conv2d(c, 5, 1), b=nn.Conv2d(c, 5, 1)
    ),
    "pixel shuffle": lambda c, s, p: (
        Block(lambda m, x: m.up(m.conv(x)), conv=nn.Conv2d(c, 16, 1), up=nn.PixelShuffle(2)) if s < 5 else nn.Identity()
    ),
    "pixel unshuffle": lambda c, s, p: (
        Block(lambda m, x: F.pixel_unshuffle(m.conv(x), 2), conv=nn.Conv2d(c, 3, 1)) if s % 2 == 0 else nn.Identity()
    ),
    "interpolate": lambda c, s, p: Block(
        lambda m, x: F.interpolate(x, scale_factor=1.5, mode=m.mode) if s < 5 else x, mode=p(["bilinear", "nearest"])
    ),
    "max pool": lambda c, s, p: nn.MaxPool2d(3, 2, 1, ceil_mode=p([True, False])) if s > 3 else nn.Identity(),
    "average pool": lambda c, s, p: (
        Block(lambda m, x: F.avg_pool2d(x, 3, 2, ceil_mode=m.up), up=p([True, False])) if s > 3 else nn.Identity()
    ),
    "padded shortcut": lambda c, s, p: (
        Block(padded_shortcut, conv=nn.Conv2d(c, c + 4, 3, stride=2, padding=1)) if s > 3 and c < 9 else nn.Identity()
    ),
    "weight norm": lambda c, s, p: parametrizations.weight_norm(nn.Conv2d(c, 4, 1)),
    "windows": lambda c, s, p: Block(windowed, mix=attention(c, p)) if s % 2 == 0 else nn.Identity(),
    "view and einsum": lambda c, s, p: Block(
        lambda m, x: torch.einsum("nchw,oc->nohw", x, m.weight) + m.bias.view(1, -1, 1, 1),
        weight=parameter(5, c),
        bias=parameter(5),
    ),
}


# --- sequences, (batch, t, d) ---------------------------------------------------------------------------------------------


def rotate_half(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([-right, left], -1)


def rotary(x: Tensor) -> Tensor:
    """x (batch, heads, t, width)."""
    width = x.shape[-1]
    frequency = 1 / 100 ** (torch.arange(0, width, 2) / width)
    angle = torch.arange(x.shape[2])[:, None] * torch.cat([frequency, frequency])
    return x * angle.cos() + rotate_half(x) * angle.sin()


def by_hand(m: nn.Module, x: Tensor, heads: int, rope: bool = False) -> Tensor:
    n, t, _ = x.shape
    q, k, v = (layer(x).view(n, t, heads, -1).transpose(1, 2) for layer in (m.q, m.k, m.v))
    if rope:
        q, k = rotary(q), rotary(k)
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    return m.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))


def fused(m: nn.Module, x: Tensor, heads: int) -> Tensor:
    n, t, _ = x.shape
    q, k, v = m.qkv(x).reshape(n, t, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


def chunked(m: nn.Module, x: Tensor, heads: int) -> Tensor:
    n, t, _ = x.shape
    q, k, v = (y.view(n, t, heads, -1).transpose(1, 2) for y in m.qkv(x).chunk(3, -1))
    return m.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def grouped_query(m: nn.Module, x: Tensor, heads: int, how: str) -> Tensor:
    n, t, _ = x.shape
    q = m.q(x).view(n, t, 2 * heads, -1).transpose(1, 2)
    k, v = (layer(x).view(n, t, heads, -1).transpose(1, 2) for layer in (m.k, m.v))
    if how == "repeat":
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    elif how == "expand":
        k, v = (y[:, :, None].expand(-1, -1, 2, -1, -1).reshape(n, 2 * heads, t, -1) for y in (k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=how == "native")
    return m.out(mixed.transpose(1, 2).reshape(n, t, -1))


def biased(m: nn.Module, x: Tensor, heads: int) -> Tensor:
    """Relative positions: a learned number for each distance and head."""
    n, t, _ = x.shape
    q, k, v = (layer(x).view(n, t, heads, -1).transpose(1, 2) for layer in (m.q, m.k, m.v))
    places = torch.arange(t)
    bias = m.table[places[:, None] - places[None, :] + 31].permute(2, 0, 1)
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
    return m.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def einsummed(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("ntd,dhk->nhtk", x, w) for w in (m.q, m.k, m.v))
    weights = torch.einsum("nhtk,nhsk->nhts", q, k).softmax(-1)
    return torch.einsum("nhtk,hkd->ntd", torch.einsum("nhts,nhsk->nhtk", weights, v), m.out)


def attention(d: int, pick: Pick, kind: str = "") -> nn.Module:
    """Attention from width d to width d, written in one of the ways people do."""
    heads, width = pick([1, 2, 3]), 4
    inner = heads * width
    kind = kind or pick(list(ATTENTION))
    three = {name: nn.Linear(d, inner, bias=pick([True, False])) for name in "qkv"}
    return ATTENTION[kind](d, heads, inner, three, pick)


ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "by hand": lambda d, h, i, qkv, p: Block(lambda m, x: by_hand(m, x, m.heads), heads=h, **qkv, out=nn.Linear(i, d)),
    "rotary": lambda d, h, i, qkv, p: Block(
        lambda m, x: by_hand(m, x, m.heads, rope=True), heads=h, **qkv, out=nn.Linear(i, d)
    ),
    "fused": lambda d, h, i, qkv, p: Block(
        lambda m, x: fused(m, x, m.heads), heads=h, qkv=nn.Linear(d, 3 * i), out=nn.Linear(i, d)
    ),
    "chunked": lambda d, h, i, qkv, p: Block(
        lambda m, x: chunked(m, x, m.heads), heads=h, qkv=nn.Linear(d, 3 * i), out=nn.Linear(i, d)
    ),
    "grouped query": lambda d, h, i, qkv, p: Block(
        lambda m, x: grouped_query(m, x, m.heads, m.how),
        heads=h,
        how=p(["repeat", "expand", "native"]),
        q=nn.Linear(d, 2 * i),
        k=qkv["k"],
        v=qkv["v"],
        out=nn.Linear(2 * i, d),
    ),
    "biased": lambda d, h, i, qkv, p: Block(
        lambda m, x: biased(m, x, m.heads), heads=h, **qkv, table=parameter(63, h), out=nn.Linear(i, d)
    ),
    "einsum": lambda d, h, i, qkv, p: Block(
        einsummed, q=parameter(d, h, 4), k=parameter(d, h, 4), v=parameter(d, h, 5), out=parameter(h, 5, d)
    ),
    "torch": lambda d, h, i, qkv, p: Block(
        lambda m, x: m.after(m.attend(*[m.before(x)] * 3, need_weights=False)[0]),
        before=nn.Linear(d, i),
        attend=nn.MultiheadAttention(i, h, batch_first=True),
        after=nn.Linear(i, d),
    ),
}


def swiglu(m: nn.Module, x: Tensor) -> Tensor:
    return m.down(F.silu(m.gate(x)) * m.up(x))


def pre_norm(m: nn.Module, x: Tensor) -> Tensor:
    return x + m.inner(m.norm(x))


SEQUENCES: dict[str, Callable[[int, int, Pick], nn.Module]] = {
    **{f"attention {kind}": lambda d, t, p, kind=kind: attention(d, p, kind) for kind in ATTENTION},
    "linear": lambda d, t, p: nn.Linear(d, p([4, 6, 11])),
    "layer norm": lambda d, t, p: nn.LayerNorm(d),
    "rms norm": lambda d, t, p: nn.RMSNorm(d),
    "rms norm by hand": lambda d, t, p: Block(
        lambda m, x: m.gamma * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), gamma=parameter(d)
    ),
    "pre-norm attention": lambda d, t, p: Block(pre_norm, norm=nn.LayerNorm(d), inner=attention(d, p)),
    "post-norm mlp": lambda d, t, p: Block(
        lambda m, x: m.norm(x + m.b(F.gelu(m.a(x)))), a=nn.Linear(d, 7), b=nn.Linear(7, d), norm=nn.LayerNorm(d)
    ),
    "swiglu": lambda d, t, p: Block(
        pre_norm,
        norm=nn.RMSNorm(d),
        inner=Block(swiglu, gate=nn.Linear(d, 6, bias=False), up=nn.Linear(d, 6), down=nn.Linear(6, d)),
    ),
    "fused swiglu": lambda d, t, p: Block(
        lambda m, x: m.down(F.silu((y := m.both(x)).chunk(2, -1)[0]) * y.chunk(2, -1)[1]),
        both=nn.Linear(d, 12),
        down=nn.Linear(6, d),
    ),
    "layer scale": lambda d, t, p: Block(lambda m, x: x + m.gamma * m.mix(x), mix=nn.Linear(d, d), gamma=parameter(d)),
    "class token": lambda d, t, p: Block(
        lambda m, x: torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1), token=parameter(1, 1, d)
    ),
    "conv over time": lambda d, t, p: Block(
        lambda m, x: m.conv(x.transpose(1, 2)).transpose(1, 2), conv=nn.Conv1d(d, p([4, 6]), 3, padding=1)
    ),
    "depthwise over time": lambda d, t, p: Block(
        lambda m, x: x + m.conv(x.mT).mT, conv=nn.Conv1d(d, d, 3, padding=1, groups=d)
    ),
    "weight norm": lambda d, t, p: parametrizations.weight_norm(nn.Linear(d, 5)),
    "linear on four dimensions": lambda d, t, p: Block(
        lambda m, x: m.mix(F.silu(m.wide(x)).view(*x.shape[:2], 3, 4)).flatten(2),
        wide=nn.Linear(d, 12),
        mix=nn.Linear(4, 2),
    ),
    "cast": lambda d, t, p: Block(
        lambda m, x: m.mix(x.double().sum(-1, keepdim=True).float() + x), mix=nn.Linear(d, d)
    ),
}

# --- signals, (batch, c, l), and volumes, (batch, c, d, h, w) -----------------------------------------------------------------

SIGNALS: dict[str, Callable[[int, int, Pick], nn.Module]] = {
    "conv": lambda c, s, p: nn.Conv1d(c, p([4, 6]), 3, padding=1),
    "grouped": lambda c, s, p: nn.Conv1d(c, c, 3, padding=1, groups=split_of(c, p)),
    "depthwise": lambda c, s, p: nn.Conv1d(c, c * p([1, 2]), 3, padding="same", groups=c),
    "transposed": lambda c, s, p: nn.ConvTranspose1d(c, 5, 2, stride=2) if s < 8 else nn.Identity(),
    "batch norm": lambda c, s, p: nn.BatchNorm1d(c),
    "instance norm": lambda c, s, p: nn.InstanceNorm1d(c, affine=True),
    "group norm": lambda c, s, p: nn.GroupNorm(split_of(c, p), c),
    "max pool": lambda c, s, p: nn.MaxPool1d(2, ceil_mode=p([True, False])) if s > 3 else nn.Identity(),
    "average pool": lambda c, s, p: nn.AvgPool1d(2) if s > 3 else nn.Identity(),
    "wavenet": lambda c, s, p: Block(
        lambda m, x: x + m.mix(torch.tanh(m.a(x)) * torch.sigmoid(m.b(x))),
        a=nn.Conv1d(c, 5, 3, padding=2, dilation=2),
        b=nn.Conv1d(c, 5, 3, padding=2, dilation=2),
        mix=nn.Conv1d(5, c, 1),
    ),
    "squeeze and excite": lambda c, s, p: Block(
        lambda m, x: x * torch.sigmoid(m.a(x.mean(-1))).unsqueeze(-1), a=nn.Linear(c, c)
    ),
}
VOLUMES: dict[str, Callable[[int, int, Pick], nn.Module]] = {
    "conv": lambda c, s, p: nn.Conv3d(c, p([4, 6]), 3, padding=1),
    "grouped": lambda c, s, p: nn.Conv3d(c, c, 1, groups=split_of(c, p)),
    "transposed": lambda c, s, p: nn.ConvTranspose3d(c, 4, 2, stride=2) if s < 4 else nn.Identity(),
    "batch norm": lambda c, s, p: nn.BatchNorm3d(c),
    "group norm": lambda c, s, p: nn.GroupNorm(split_of(c, p), c),
    "pool": lambda c, s, p: nn.MaxPool3d(2) if s > 2 else nn.AdaptiveAvgPool3d(1),
    "residual": lambda c, s, p: Block(lambda m, x: F.silu(x + m.conv(x)), conv=nn.Conv3d(c, c, 3, padding=1)),
}


# --- whole models ---------------------------------------------------------------------------------------------------------


def chain(
    table: dict[str, Callable[..., nn.Module]], kinds: Sequence[str], x: Tensor, pick: Pick, tied: nn.Module
) -> list[nn.Module]:
    """Steps one after another, each made for what the last one gives, with a head. Channels: dimension 1, or the last."""
    last = table is SEQUENCES
    steps: list[nn.Module] = []
    for kind in kinds:
        step = table[kind](x.shape[-1 if last else 1], x.shape[1 if last else -1], pick)
        with torch.no_grad():
            x = step(x)
        steps.append(step)
    width = x.shape[-1 if last else 1]
    if not last and pick([True, False]):
        return [*steps, nn.Flatten(), nn.Linear(x[0].numel(), 4), nn.SiLU(), nn.Linear(4, CLASSES)]
    if last and width == 8 and isinstance(tied, nn.Embedding):
        head = nn.Linear(width, WORDS, bias=False)
        head.weight = tied.weight
        return [*steps, head]
    pooled = Block(lambda m, x: F.silu(x).mean(1) if last else F.silu(x).flatten(2).mean(-1))
    return [*steps, pooled, nn.Linear(width, CLASSES)]


STEM = {
    "pictures": lambda: (nn.Conv2d(2, 8, 3, padding=1), torch.randn(2, 2, 4, 4)),
    "signals": lambda: (nn.Conv1d(2, 6, 3, padding=1), torch.randn(2, 2, 8)),
    "volumes": lambda: (nn.Conv3d(2, 4, 1), torch.randn(2, 2, 3, 3, 3)),
    "sequences": lambda: (nn.Linear(3, 8), torch.randn(2, 5, 3)),
    "words": lambda: (nn.Embedding(WORDS, 8), torch.randint(0, WORDS, (2, 5))),
}
TABLE = {"pictures": PICTURES, "signals": SIGNALS, "volumes": VOLUMES, "sequences": SEQUENCES, "words": SEQUENCES}


def assembled(domain: str, kinds: Sequence[str], pick: Pick) -> tuple[nn.Module, Tensor]:
    stem, x = STEM[domain]()
    with torch.no_grad():
        steps = chain(TABLE[domain], kinds, stem(x), pick, stem)
    return nn.Sequential(stem, *steps), x


@st.composite
def models(draw: st.DrawFn, domain: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(draw(st.integers(0, 2**32)))
    kinds = draw(st.lists(st.sampled_from(list(TABLE[domain])), min_size=1, max_size=3))
    return assembled(domain, kinds, lambda options: draw(st.sampled_from(options)))


def randomised_(model: nn.Module) -> nn.Module:
    """Scales and statistics that are not 1 and 0."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "running_var" in name or (tensor.is_floating_point() and bool((tensor == 1).all())):
                tensor.uniform_(0.5, 2)
            elif "running_mean" in name or (tensor.is_floating_point() and not tensor.any()):
                tensor.normal_()
    return model


def same_state(module: nn.Module, before: dict[str, Tensor]) -> bool:
    after = module.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def own_class(model: nn.Module, network: Network, small: Network, x: Tensor) -> nn.Module | None:
    """The small network in the user's class; None where that cannot hold it."""
    try:
        own = into_own_class(model, network, small, [x]).eval()
    except SurgeryError:
        return None
    assert type(own) is type(model)
    assert list(own.state_dict()) == list(model.state_dict())
    return own


def check(
    model: nn.Module, x: Tensor, choose: Callable[[Sequence], dict[str, list[int]]], silenced: Callable
) -> tuple[int, bool]:
    """Everything that must hold of a model and a choice among its channels.

    Returns: how many there were to choose from, and whether the model's class can hold the smaller network.
    """
    randomised_(model)
    before, text = copy.deepcopy(model.state_dict()), repr(model)
    network = trace(model, [x]).eval()
    answers = network(x)
    grouping = channel_groups(network)
    chosen = choose(grouping.groups)
    removal = grouping.removal(chosen)
    proof = prove_removal(network, removal)
    assert proof.error <= 1e-9
    assert (proof.effect > 1e-12) == bool(removal.n_channels)
    small = remove_channels(network, removal)
    assert torch.equal(network(x), answers)
    assert same_state(model, before)
    assert repr(model) == text
    n_before, n_after = (sum(p.numel() for p in m.parameters()) for m in (network, small))
    assert n_after < n_before if removal.n_channels else n_after == n_before

    if not removal.survivors:
        silent = silenced(network, grouping, chosen).in_float64()
        (inputs,) = network.random_inputs(3, torch.Generator().manual_seed(0), torch.float64)
        torch.testing.assert_close(small.in_float64()(inputs), silent(inputs), rtol=1e-8, atol=1e-9)

    own = own_class(model, network, small, x)
    for batch in (1, 3):  # and sequences of another length
        other = torch.cat([x, x[:1]])[:batch]
        if network.hints:
            other = torch.cat([other, other[:, :2]], 1)
            torch.testing.assert_close(network(other), model.eval()(other))
        found = small(other)
        assert found.shape == network(other).shape
        if own is not None:
            torch.testing.assert_close(own(other), found)

    again = channel_groups(small)
    second = again.removal({group.name: [0] for group in again.groups if group.n_channels > 1})
    assert prove_removal(small, second).error <= 1e-9
    trained = remove_channels(small, second).train()
    trained(torch.cat([x, x[:1]])).square().sum().backward()
    with_gradient = {name for name, p in trained.named_parameters() if p.grad is not None and p.grad.isfinite().all()}
    assert with_gradient == {name for name, _ in trained.named_parameters()}
    return sum(group.n_channels for group in grouping.groups), own is not None


LITERAL = ("padded shortcut", "windows", "attention torch", "pre-norm attention", "linear on four dimensions")
"""Classes that have a size in their forward method, as `nn.MultiheadAttention` has that heads are as wide as all of it."""
KINDS = [(domain, kind) for domain in ("pictures", "sequences", "signals", "volumes") for kind in TABLE[domain]]


@pytest.mark.parametrize(("domain", "kind"), KINDS)
def test_each_structure_alone(domain: str, kind: str, silenced: Callable) -> None:
    model, x = assembled(domain, [kind], lambda options: options[-1])
    n_channels, held = check(
        model, x, lambda groups: {g.name: [*range(0, g.n_channels - 1, 2)] for g in groups}, silenced
    )
    assert n_channels > 1
    assert held == (kind not in LITERAL)


@pytest.mark.parametrize(
    ("domain", "examples"), [("pictures", 10), ("sequences", 6), ("words", 3), ("signals", 3), ("volumes", 3)]
)
def test_structures_together(domain: str, examples: int, some: Callable, silenced: Callable) -> None:
    @settings(max_examples=examples)
    @given(models(domain), st.data())
    def hold(made: tuple[nn.Module, Tensor], data: st.DataObject) -> None:
        check(*made, lambda groups: some(groups, data.draw), silenced)

    hold()


def wrong_tensors(network: Network, removal: Removal) -> Iterator[tuple[object, Removal]]:
    """A slice left out, a slice one further."""
    for i, piece in enumerate(removal.slices):
        rest = [*removal.slices[:i], *removal.slices[i + 1 :]]
        size = tensor_at(network, f"{piece.path}.{piece.name}").shape[piece.dim]
        yield piece, replace(removal, slices=tuple(rest))
        shifted = replace(piece, keep=np.sort((piece.keep + 1) % size))
        yield shifted, replace(removal, slices=(*rest, shifted))


def wrong_constants(network: Network, removal: Removal) -> Iterator[tuple[object, Removal]]:
    """A constant of a node or a layer that is one off."""
    for i, change in enumerate(removal.changes):
        if change.setting != "end":  # the end of the last slice may lie behind the end
            off = replace(change, value=change.value + 1)
            yield off, replace(removal, changes=(*removal.changes[:i], off, *removal.changes[i + 1 :]))


@pytest.mark.parametrize("wrong", [wrong_tensors, wrong_constants])
@pytest.mark.parametrize(
    ("domain", "kind"),
    [("sequences", "attention grouped query"), ("pictures", "shuffle unit"), ("pictures", "padded shortcut")],
)
def test_a_removal_that_is_wrong_in_one_place_is_not_proved(domain: str, kind: str, wrong: Callable) -> None:
    model, x = assembled(domain, [kind], lambda options: options[-1])
    network = trace(randomised_(model), [x])
    grouping = channel_groups(network)
    removal = grouping.removal({group.name: [0] for group in grouping.groups})
    assert prove_removal(network, removal).error <= 1e-9
    for where, mutant in wrong(network, removal):
        with pytest.raises(SurgeryError):
            pytest.fail(f"{where}: {prove_removal(network, mutant)}")
