"""Networks put together at random of what people put networks together of: every cut is proved, and checked by other means.

A network is a list of steps, drawn; its class is an ordinary eager `nn.Module` that `trace` has never seen.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.graph import channel_groups, prove_removal, remove_channels, trace
from penjing.graph.own_class import into_own_class

SIDE, LENGTH, WIDTH = 4, 6, 8
Draw = Callable[[st.SearchStrategy], object]
Step = Callable[["Drawn", list[Tensor]], Tensor]
PICTURE, SEQUENCE = 4, 3


class Drawn(nn.Module):
    """The steps, one after the other; each may look at all results before it. The mean over places goes to a head."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.rank = rank
        self.head = nn.Identity()

    def own(self, layer: nn.Module | Tensor) -> str:
        """Keep a layer or a parameter. Returns: its name."""
        name = f"part{len(self.steps)}_{len(self._modules) + len(self._parameters)}"
        setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)
        return name

    def body(self, x: Tensor) -> list[Tensor]:
        results = [x]
        for step in self.steps:
            results.append(step(self, results))
        return results

    def forward(self, x: Tensor) -> Tensor:
        last = self.body(x)[-1]
        return self.head(last.mean((2, 3)) if self.rank == PICTURE else last.mean(1))


def layer_step(model: Drawn, layer: nn.Module, function: Callable[[Tensor], Tensor] = lambda y: y) -> Step:
    name = model.own(layer)
    return lambda m, r: function(getattr(m, name)(r[-1]))


def heads_apart(x: Tensor, n: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], n, -1).transpose(1, 2)  # (batch, heads, length, width of a head)


def attention(model: Drawn, width: int, draw: Draw) -> Step:
    """Of one projection for all three or of three, with as many keys as queries or fewer, written out or fused."""
    heads, head = 4, 2
    key_heads = draw(st.sampled_from([4, 2]))
    fused, apart = draw(st.booleans()), draw(st.booleans()) or key_heads != heads
    if apart:
        names = [model.own(nn.Linear(width, n * head)) for n in (heads, key_heads, key_heads)]
    else:
        names = [model.own(nn.Linear(width, 3 * heads * head))]
    out = model.own(nn.Linear(heads * head, width))
    table = model.own(0.5 * torch.randn(heads, LENGTH, LENGTH)) if draw(st.booleans()) and not fused else None

    def step(m: Drawn, r: list[Tensor]) -> Tensor:
        x = r[-1]
        parts = [getattr(m, n)(x) for n in names] if apart else getattr(m, names[0])(x).chunk(3, -1)
        q = heads_apart(parts[0], heads)
        k, v = (heads_apart(part, key_heads) for part in parts[1:])
        if fused:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=key_heads != heads)
        else:
            k, v = (t.repeat_interleave(heads // key_heads, 1) if key_heads != heads else t for t in (k, v))
            scores = q @ k.transpose(-2, -1) * head**-0.5
            y = (scores if table is None else scores + getattr(m, table)).softmax(-1) @ v
        return getattr(m, out)(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], heads * head))

    return step


def gated(x: Tensor, dim: int) -> Tensor:
    left, right = x.chunk(2, dim)
    return left * torch.sigmoid(right)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def excited(model: Drawn, channels: int) -> Step:
    down, up = model.own(nn.Conv2d(channels, 3, 1)), model.own(nn.Conv2d(3, channels, 1))
    return lambda m, r: r[-1] * torch.sigmoid(getattr(m, up)(F.relu(getattr(m, down)(F.adaptive_avg_pool2d(r[-1], 1)))))


def with_another(draw: Draw, results: list[Tensor], dim: int, join: Callable[[Tensor, Tensor], Tensor]) -> Step | None:
    """A step that takes the last result and an earlier one of the same shape, except along `dim`."""
    last = results[-1]
    fits = [
        i
        for i, r in enumerate(results)
        if r.dim() == last.dim() and all(a == b for d, (a, b) in enumerate(zip(r.shape, last.shape, strict=True)) if d != dim)
    ]  # fmt: skip
    if not fits:
        return None
    other = draw(st.sampled_from(fits))
    return lambda m, r: join(r[-1], r[other])


def picture_step(kind: str, model: Drawn, results: list[Tensor], draw: Draw) -> Step | None:
    channels, side = results[-1].shape[1], results[-1].shape[-1]
    width = draw(st.sampled_from([4, 6, 8]))
    match kind:
        case "convolution":
            return layer_step(model, nn.Conv2d(channels, width, 3, padding=1, bias=draw(st.booleans())))
        case "grouped" if channels % 2 == 0:
            return layer_step(model, nn.Conv2d(channels, width, 1, groups=2))
        case "depthwise":
            return layer_step(model, nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
        case "transposed":
            return layer_step(model, nn.ConvTranspose2d(channels, width, 3, padding=1))
        case "batch norm":
            return layer_step(model, nn.BatchNorm2d(channels), F.relu)
        case "group norm":
            return layer_step(model, nn.GroupNorm(draw(st.sampled_from([1, 2])) if channels % 2 == 0 else 1, channels))
        case "excite":
            return excited(model, channels)
        case "gate" if channels % 2 == 0 and channels > 2:
            return lambda m, r: gated(r[-1], 1)
        case "shuffle" if channels % 2 == 0:
            return lambda m, r: shuffled(r[-1])
        case "swap" if channels > 2:
            return lambda m, r: torch.cat(list(r[-1].split([2, channels - 2], 1))[::-1], 1)
        case "pixel shuffle" if channels % 4 == 0 and channels > 4 and side <= SIDE:
            return lambda m, r: F.max_pool2d(F.pixel_shuffle(r[-1], 2), 2)
        case "resize":
            return lambda m, r: F.interpolate(r[-1], scale_factor=2, mode="nearest")[..., ::2, ::2]
        case "pad":
            return lambda m, r: F.pad(r[-1], (0, 0, 0, 0, 1, 2))
        case "scale":
            name = model.own(torch.rand(channels, 1, 1) + 0.5)
            return lambda m, r: r[-1] * getattr(m, name)
        case "pool":
            return lambda m, r: F.avg_pool2d(r[-1], 3, 1, 1)
        case "tokens":  # linear layers along the channels, as in ConvNeXt
            up, down = model.own(nn.Linear(channels, width)), model.own(nn.Linear(width, channels))
            norm = model.own(nn.LayerNorm(channels))
            return lambda m, r: getattr(m, down)(
                F.gelu(getattr(m, up)(getattr(m, norm)(r[-1].permute(0, 2, 3, 1))))
            ).permute(0, 3, 1, 2)
        case "windows":
            return lambda m, r: (
                torch.roll(r[-1], (1, 1), (2, 3))
                .reshape(r[-1].shape[0], channels, side // 2, 2, side // 2, 2)
                .permute(0, 2, 4, 3, 5, 1)
                .amax((3, 4))
                .permute(0, 3, 1, 2)
                .repeat_interleave(2, 2)
                .repeat_interleave(2, 3)
            )
        case "add":
            return with_another(draw, results, -1, draw(st.sampled_from([torch.add, torch.mul, torch.maximum])))
        case "concat":
            return with_another(draw, results, 1, lambda a, b: torch.cat([a, b], 1))
    return None


def sequence_step(kind: str, model: Drawn, results: list[Tensor], draw: Draw) -> Step | None:
    width = results[-1].shape[-1]
    match kind:
        case "linear":
            return layer_step(model, nn.Linear(width, WIDTH), draw(st.sampled_from([F.relu, torch.tanh, F.gelu])))
        case "attention":
            return attention(model, width, draw)
        case "layer norm":
            return layer_step(model, nn.LayerNorm(width))
        case "rms norm":
            return layer_step(model, nn.RMSNorm(width))
        case "gated":
            up, down = model.own(nn.Linear(width, 12)), model.own(nn.Linear(6, WIDTH))
            return lambda m, r: getattr(m, down)(gated(getattr(m, up)(r[-1]), -1))
        case "tied":
            weight = model.own(torch.randn(5, width))
            return lambda m, r: F.relu(r[-1] @ getattr(m, weight).t()) @ getattr(m, weight)
        case "einsum":
            weight = model.own(torch.randn(width, 2, 3))
            back = model.own(torch.randn(2, 3, WIDTH))
            return lambda m, r: torch.einsum(
                "nthk,hkd->ntd", torch.einsum("ntd,dhk->nthk", r[-1], getattr(m, weight)), getattr(m, back)
            )
        case "positions":
            table = model.own(torch.randn(1, LENGTH, width))
            return lambda m, r: r[-1] + getattr(m, table)
        case "mixer":
            up, down = model.own(nn.Linear(LENGTH, 4)), model.own(nn.Linear(4, LENGTH))
            return lambda m, r: getattr(m, down)(F.relu(getattr(m, up)(r[-1].transpose(1, 2)))).transpose(1, 2)
        case "convolution":
            return layer_step(model, nn.Conv1d(LENGTH, LENGTH, 3, padding=1))
        case "shift":
            return lambda m, r: torch.roll(r[-1], 1, 1)
        case "add":
            return with_another(draw, results, -2, draw(st.sampled_from([torch.add, torch.mul])))
        case "concat":
            return with_another(draw, results, 2, lambda a, b: torch.cat([a, b], 2))
    return None


PICTURE_KINDS = (
    "convolution convolution grouped depthwise transposed|batch norm|group norm|excite gate shuffle swap|pixel shuffle|"
    "resize pad scale pool tokens windows add add concat"
)
SEQUENCE_KINDS = (
    "linear attention attention|layer norm|rms norm|gated tied einsum positions mixer convolution shift add add concat"
)


def kinds(text: str) -> list[str]:
    named = {"batch norm", "group norm", "pixel shuffle", "layer norm", "rms norm"}
    return [kind for part in text.split("|") for kind in ([part] if part in named else part.split())]


@st.composite
def models(draw: st.DrawFn) -> tuple[Drawn, Tensor]:
    """A network and an example for it."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    rank = draw(st.sampled_from([PICTURE, SEQUENCE]))
    model = Drawn(rank)
    example = torch.randn(2, 3, SIDE, SIDE) if rank == PICTURE else torch.randn(2, LENGTH, WIDTH)
    step_of, names = (picture_step, kinds(PICTURE_KINDS)) if rank == PICTURE else (sequence_step, kinds(SEQUENCE_KINDS))
    first = nn.Conv2d(3, 8, 3, padding=1) if rank == PICTURE else nn.Linear(WIDTH, WIDTH)
    model.steps.append(layer_step(model, first))
    for kind in draw(st.lists(st.sampled_from(names), min_size=1, max_size=8)):
        with torch.no_grad():
            results = model.eval().body(example)
        step = step_of(kind, model, results, draw)
        if step is not None:
            model.steps.append(step)
    with torch.no_grad():
        last = model.body(example)[-1]
    model.head = nn.Linear(last.shape[1 if rank == PICTURE else -1], 3)
    return model.eval(), example


@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(drawn=models(), data=st.data())
def test_every_cut_is_proved(
    drawn: tuple[Drawn, Tensor], data: st.DataObject, some: Callable, silenced: Callable
) -> None:
    model, example = drawn
    network = trace(model, [example])
    grouping = channel_groups(network)
    chosen = some(grouping.groups, data.draw)
    removal = grouping.removal(chosen)
    proof = prove_removal(network, removal)  # raises where it does not hold
    small = remove_channels(network, removal)
    inputs = torch.randn(3, *example.shape[1:], dtype=torch.float64)
    if not proof.changed:  # no norm whose statistics are other ones: the masks can be made by hand
        large = silenced(network, grouping, chosen).double()
        expected, found = large(inputs), small.double()(inputs)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    if chosen:
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(drawn=models())
def test_nothing_removed_is_the_same_network_in_its_class(drawn: tuple[Drawn, Tensor]) -> None:
    model, example = drawn
    network = trace(model, [example])
    copied = into_own_class(model, network, network, [example])
    torch.testing.assert_close(copied(example), model(example))
    assert set(network.state_dict()) <= set(model.state_dict())
