"""Models as they come: read rightly, or refused with the layer and the reason; never another error, never a wrong network."""

import collections
import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils import checkpoint

from penjing.errors import DataError, TraceError
from penjing.graph import Network, channel_groups, prove_removal, remove_channels, trace

N_IN, N_OUT = 6, 3


class Two(nn.Module):
    """Two linear layers, and something done with the result of the first."""

    def __init__(self, between: Callable[..., Any] = lambda m, y: torch.tanh(y), **parts: object) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(N_IN, 4), nn.Linear(4, N_OUT)
        self.between = between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))


class Whole(Two):
    """The same layers, and a forward method as a function of the module and the inputs."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.between(self, *inputs, **named)


def example(n: int = 2) -> Tensor:
    return torch.randn(n, N_IN)


def leaves(answer: Any) -> list[Tensor]:
    if dataclasses.is_dataclass(answer):
        answer = [getattr(answer, f.name) for f in dataclasses.fields(answer)]
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, (tuple, list)):
        return [leaf for part in answer for leaf in leaves(part)]
    return [] if answer is None else [answer]


def gradients(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """By parameter, of a weighted sum of the answers."""
    answers = [y.double() for y in leaves(model(*inputs)) if y.requires_grad]
    if answers:
        model.zero_grad()
        torch.stack([(y * torch.arange(y.numel()).view(y.shape).cos()).sum() for y in answers]).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def attributes(model: nn.Module) -> list[dict[str, Any]]:
    hidden = ("_parameters", "_buffers", "_modules")
    return [{n: copy.copy(v) if n in hidden else v for n, v in m.__dict__.items()} for m in model.modules()]


def read(model: nn.Module, *inputs: Tensor) -> Network:
    """Trace; the model and the inputs must be what they were."""
    before, values = attributes(model), {n: v.clone() for n, v in model.state_dict().items()}
    copies = [x.clone() for x in inputs]
    try:
        return trace(model, inputs)
    finally:
        assert attributes(model) == before
        assert all(torch.equal(v, values[n]) for n, v in model.state_dict().items())
        assert all(torch.equal(x, y) for x, y in zip(inputs, copies, strict=True))


def check(model: nn.Module, *inputs: Tensor, learns: bool = True) -> Network:
    """It computes and learns what the model does, for other numbers of samples too, and can be cut."""
    network = read(model, *inputs)
    for n, training in ((1, False), (3, False), (3, True)):
        others = [x.repeat(3, *[1] * (x.dim() - 1))[:n] for x in inputs]
        for module in (model, network):
            module.train(training)
        torch.manual_seed(0)
        expected = leaves(model(*(x.clone() for x in others)))
        torch.manual_seed(0)
        found = leaves(network(*others))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    if learns:
        model.eval(), network.eval()
        expected, found = gradients(model, *(x.clone() for x in inputs)), gradients(network, *inputs)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient)
    grouping = channel_groups(network)
    removal = grouping.removal({g.name: [0] for g in grouping.groups if g.n_channels > 1})
    assert prove_removal(network, removal).error <= 1e-9
    remove_channels(network, removal)(*inputs)
    return network


def accepted(*cases: tuple[str, Callable[[], nn.Module]], marks: Any = ()) -> list[Any]:
    return [pytest.param(make, id=name, marks=marks) for name, make in cases]


# --- changes in place -------------------------------------------------------------------------------------------------


def in_place(function: Callable[[Tensor], object]) -> Callable[[], nn.Module]:
    def between(m: nn.Module, y: Tensor) -> Tensor:
        z = y + 1
        function(z)
        return z

    return functools.partial(Two, between)


def set_item(index: Any, value: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    return in_place(lambda z: z.__setitem__(index, value(z)))


IN_PLACE = accepted(
    ("a column plus 1", set_item((slice(None), 0), lambda z: z[:, 0] + 1)),
    ("columns times 2", in_place(lambda z: z[:, :3].mul_(2))),
    ("columns from the end", in_place(lambda z: z[:, -2:].mul_(2))),
    ("one half set to the other", set_item((..., slice(0, 2)), lambda z: z[..., 2:4])),
    ("every second set", set_item((slice(None), slice(None, None, 2)), lambda z: 0.5)),
    ("a number", set_item((slice(None), 1), lambda z: 7.5)),
    ("copy_", in_place(lambda z: z[:, :2].copy_(z[:, 2:]))),
    ("relu_ of a view", in_place(lambda z: z.view(z.shape[0], 2, 2).relu_())),
    ("zero_ of a view of a view", in_place(lambda z: z.view(z.shape[0], 2, 2)[:, 1][:, 0].zero_())),
    ("add_ of itself", in_place(lambda z: z.add_(z))),
    (
        "a view used afterwards",
        lambda: Two(lambda m, y: (v := (y + 1).view(-1, 2, 2)).flatten(1).mul_(2) + v.relu_().flatten(1)),
    ),
    ("what mul_ returns", in_place(lambda z: z.mul_(2).add_(1))),
    ("a clone of a parameter", lambda: Two(lambda m, y: y * m.a.bias.clone().fill_(2))),
)


# --- hooks and functions of autograd ----------------------------------------------------------------------------------


def hooked(kind: str, hook: Callable, where: str = "a") -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Two()
        getattr(model.get_submodule(where), f"register_{kind}")(hook)
        return model

    return make


def hooked_layer(layer: Callable[[], nn.Module], kind: str, hook: Callable) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(N_IN, 4), layer(), nn.Linear(4, N_OUT))
        getattr(model[1], f"register_{kind}")(hook)
        return model

    return make


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class Sign(torch.autograd.Function):
    """Its gradient is not that of what it computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def without_gradient(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.a(x)
    return m.b(y)


HOOKS = accepted(
    ("that look", hooked("forward_hook", lambda m, i, o: None)),
    ("that change the answer", hooked("forward_hook", lambda m, i, o: o * 2)),
    ("with the layer's weight", hooked("forward_hook", lambda m, i, o: F.linear(o, m.weight @ m.weight.T))),
    (
        "that call the layer's function again",
        hooked("forward_hook", lambda m, i, o: F.linear(i[0] * 2, m.weight, m.bias)),
    ),
    ("that change the input", hooked("forward_pre_hook", lambda m, i: (i[0] * 2,))),
    ("of the model", hooked("forward_hook", lambda m, i, o: o + 1, "")),
    ("on backward", hooked("full_backward_hook", lambda m, i, o: None, "b")),
    ("of the same kind as the layer", hooked_layer(nn.Softsign, "forward_hook", lambda m, i, o: o * 1)),
)
SWALLOWED = accepted(
    ("sigmoid after a sigmoid", hooked_layer(nn.Sigmoid, "forward_hook", lambda m, i, o: torch.sigmoid(o))),
    (
        "dropout after a dropout",
        hooked_layer(lambda: nn.Dropout(0.3), "forward_hook", lambda m, i, o: F.dropout(o, 0.3, m.training)),
    ),
)
LEARNING = accepted(
    ("a custom function with its own gradient", lambda: Two(lambda m, y: Double.apply(y))),
    ("checkpoints", lambda: Two(lambda m, y: checkpoint.checkpoint(torch.tanh, y, use_reentrant=False))),
)
DETACHED = accepted(
    ("straight through by detach", lambda: Two(lambda m, y: y + (y.sign() - y).detach())),
    ("detach", lambda: Two(lambda m, y: y + m.b.weight.detach().mean())),
    ("no_grad inside", lambda: Whole(without_gradient)),
)


# --- parameters and layers --------------------------------------------------------------------------------------------


def shared_weight() -> nn.Module:
    model = Whole(lambda m, x: m.b(m.a(x) * m.c(x)), c=nn.Linear(N_IN, 4))
    model.c.weight = model.a.weight
    return model


def two_names() -> nn.Module:
    model = Two(lambda m, y: m.other(m.inner(y)), inner=nn.Linear(4, 4))
    model.other = model.inner
    return model


def transposed_tie() -> nn.Module:
    return Two(lambda m, y: F.linear(F.linear(y, m.a.weight.t()), m.a.weight))


def frozen() -> nn.Module:
    model = Two(lambda m, y: m.norm(y), norm=nn.BatchNorm1d(4))
    model.a.requires_grad_(False)
    return model


def pruned() -> nn.Module:
    model = Two()
    prune.l1_unstructured(model.a, "weight", 0.5)
    return model


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def symmetric() -> nn.Module:
    model = Two(lambda m, y: m.inner(y), inner=nn.Linear(4, 4))
    parametrize.register_parametrization(model.inner, "weight", Symmetric())
    return model


def quietly(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """torch has something to say on its own old parts."""

    def made() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return made


def compiled_in_place() -> nn.Module:
    model = Two()
    model.compile(backend="eager")
    return model


def after_a_call(model: nn.Module) -> nn.Module:
    model(example())
    return model


LAYERS = accepted(
    ("a shared weight", shared_weight),
    ("a layer under two names", two_names),
    ("a layer called three times", lambda: Two(lambda m, y: m.n(m.n(m.n(y))), n=nn.Linear(4, 4))),
    ("a transposed tie", transposed_tie),
    ("frozen parameters", frozen),
    ("masks of torch.nn.utils.prune", pruned),
    ("weight norm", lambda: Two(lambda m, y: m.n(y), n=parametrizations.weight_norm(nn.Linear(4, 4)))),
    ("a parametrization", symmetric),
    (
        "lazy layers after a call",
        lambda: after_a_call(nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(2))),
    ),
    ("compiled in place", quietly(compiled_in_place)),
    ("functional dropout", lambda: Two(lambda m, y: F.dropout(y, 0.5, m.training))),
    ("layers of no use", lambda: Two(lambda m, y: y, unused=nn.Conv2d(3, 3, 3))),
    ("a subclass of a layer", lambda: Two(lambda m, y: m.n(y), n=type("Mine", (nn.Linear,), {})(4, 4))),
    (
        "a layer with a forward of its own",
        lambda: Two(
            lambda m, y: m.n(y),
            n=type("Mine", (nn.Linear,), {"forward": lambda s, x: 2 * nn.Linear.forward(s, x)})(4, 4),
        ),
    ),
    ("a buffer", lambda: Two(lambda m, y: y * m.scale, scale=nn.Buffer(torch.arange(4.0)))),
    ("a tensor that is no buffer", lambda: Two(lambda m, y: y * m.scale, scale=torch.arange(4.0))),
    (
        "a counter that is only counted",
        lambda: Two(lambda m, y: (setattr(m, "calls", getattr(m, "calls", 0) + 1), y)[1]),
    ),
    ("a result that is kept", lambda: Two(lambda m, y: (setattr(m, "last", y), y)[1], last=None)),
)
ALPHA = accepted(("alpha dropout", lambda: nn.Sequential(nn.Linear(N_IN, 4), nn.AlphaDropout(0.5), nn.Linear(4, 2))))


@pytest.mark.parametrize("make", [*IN_PLACE, *HOOKS, *SWALLOWED, *LEARNING, *DETACHED, *LAYERS, *ALPHA])
def test_models_that_are_read(make: Callable[[], nn.Module]) -> None:
    check(make(), example())


def test_what_is_frozen_stays_frozen() -> None:
    model = frozen().train()
    model.norm.eval()
    network = read(model, example())
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == {"a.weight", "a.bias"}
    assert [network.training, network.get_submodule("norm").training, network.get_submodule("b").training] == [
        True,
        False,
        True,
    ]
    grouping = channel_groups(network)
    small = remove_channels(network, grouping.removal({grouping.groups[0].name: [1]}))
    assert {n for n, p in small.named_parameters() if not p.requires_grad} == {"a.weight", "a.bias"}
    assert not small.get_submodule("norm").training


def test_hooks_see_nothing_of_the_tracing() -> None:
    seen: list[Tensor] = []
    model = hooked("forward_hook", lambda m, i, o: seen.append(o.detach()))()
    network = read(model, example())
    seen.clear()
    network(example())
    assert seen == []
    model(example())
    assert len(seen) == 1


# --- inputs and answers -----------------------------------------------------------------------------------------------

Named = collections.namedtuple("Named", ["logits", "hidden"])


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


@pytest.mark.parametrize(
    ("answer", "keys"),
    [
        (lambda y: {"b": y, "a": y + 1}, ["b", "a"]),
        (lambda y: collections.OrderedDict(z=y, a=[y, (y + 1, None)]), ["z", "a"]),
        (lambda y: Answer(y, y * 2), ["logits", "hidden"]),
        (lambda y: Answer(y), ["logits", "hidden"]),
        (lambda y: [y, {"inner": (y, [y])}], None),
        (lambda y: (y, None), None),
        (lambda y: (y, torch.ones(2), y > 0, (10 * y).long()), None),
        (lambda y: Named(y, y + 1), None),
    ],
)
def test_answers_of_any_structure(answer: Callable[[Tensor], Any], keys: list[str] | None) -> None:
    model = Whole(lambda m, x: answer(m.a(x))).eval()
    network = check(model, example())
    x = example(3)
    found, expected = network(x), model(x)
    if keys is None:
        assert isinstance(found, tuple if isinstance(expected, tuple) else type(expected))
        assert len(found) == len(expected)
    else:
        assert list(found) == keys
        for key in keys:
            part = expected[key] if isinstance(expected, dict) else getattr(expected, key)
            assert getattr(found, key) is found[key]
            assert (found[key] is None) == (part is None)


class Options(Two):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: Tensor | None = None) -> Tensor:  # type: ignore[override]
        y = self.a(x) if mask is None else self.a(x) * mask[:, None]
        return self.b(y if scale is None else y * scale)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": example()},
        {"mask": torch.tensor([True, False]), "x": example()},
        {"scale": torch.randn(2, 1), "x": example(), "mask": torch.tensor([2, 3])},
    ],
)
def test_inputs_by_name(inputs: dict[str, Tensor]) -> None:
    model = Options()
    network = trace(model, inputs)
    for n in (1, 3):
        others = {name: torch.cat([x, x])[:n] for name, x in inputs.items()}
        torch.testing.assert_close(network(**others), model(**others))
    with pytest.raises(DataError, match="by name"):
        network(**inputs, more=example())


WIDE = torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, WIDE])
def test_types_of_floats(dtype: torch.dtype) -> None:
    picture = torch.randn(2, 2, 4, 4, dtype=dtype)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(16, N_OUT)]
    network = check(nn.Sequential(*layers).to(dtype), picture, learns=dtype == WIDE)
    assert network(picture).dtype == dtype
    mixed = Whole(lambda m, x: m.b(m.a(x).to(m.b.weight.dtype)).to(x.dtype))
    mixed.b.to(dtype)
    assert check(mixed, example(), learns=dtype == WIDE)(example()).dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (lambda: nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 2)), torch.randint(0, 9, (2, 5))),
        (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), torch.randint(0, 9, (2, 5), dtype=torch.int32)),
        (lambda: Whole(lambda m, x: m.a(x.float() / 255)), torch.randint(0, 255, (2, N_IN), dtype=torch.uint8)),
        (lambda: Whole(lambda m, x: m.a(torch.where(x, 1.0, -1.0))), torch.tensor([[True] * N_IN, [False] * N_IN])),
        (Two, example(1)),
        (Two, example().requires_grad_()),
        (Two, torch.randn(N_IN, 2).T),
        (Two, example(7)),
        (nn.Identity, example()),
        (nn.Sequential, example()),
        (lambda: Whole(lambda m, x: x.relu().sum(1)), example()),
        (lambda: Whole(lambda m, x: m.a(x).view(len(x), 2, 2)), example()),
        (lambda: Whole(lambda m, x: m.a(x).view(int(x.shape[0]), 2, 2)), example()),
        (lambda: Whole(lambda m, x: m.a(x).view(x.size(0) * 2, 2).view(len(x), -1)), example()),
        (lambda: Whole(lambda m, x: m.a(x) / x.shape[0]), example()),
    ],
)
def test_inputs_of_any_kind(model: Callable[[], nn.Module], x: Tensor) -> None:
    made = model()
    check(made, x, learns=any(True for _ in made.parameters()))


def test_an_input_that_is_not_used() -> None:
    model = Whole(lambda m, x, y: m.a(x))
    check(model, example(), torch.randn(2, 3))


def test_lengths_have_the_limits_of_the_model() -> None:
    model = Whole(lambda m, x: m.a(x + m.places[: x.shape[1]]), places=nn.Parameter(torch.randn(7, N_IN)))
    network = read(model, torch.randn(2, 5, N_IN))
    for length in (2, 7):
        x = torch.randn(3, length, N_IN)
        torch.testing.assert_close(network(x), model(x))
    with pytest.raises(DataError):
        network(torch.randn(3, 9, N_IN))


def test_pictures_of_another_size_are_never_computed_wrongly() -> None:
    model = Whole(lambda m, x: F.interpolate(m.conv(x), size=x.shape[-2:]), conv=nn.Conv2d(2, 3, 3, stride=2))
    network = read(model, torch.randn(2, 2, 8, 8))
    with pytest.raises(DataError, match=r"got \(2, 2, 16, 16\)"):
        network(torch.randn(2, 2, 16, 16))


# --- what is refused --------------------------------------------------------------------------------------------------


class Counting(Two):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.calls = 0


def counting(step: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    def forward(m: nn.Module, y: Tensor) -> Tensor:
        return y * step(m)

    def make() -> nn.Module:
        model = Counting()
        model.between = forward
        return model

    return make


def scaled_(m: nn.Module, y: Tensor) -> Tensor:
    with torch.no_grad():
        m.b.weight.mul_(0.5)
    return y


def autocast(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.b(m.a(x))


def refused(name: str, make: Callable[[], nn.Module], message: str, marks: Any = ()) -> Any:
    return pytest.param(make, message, id=name, marks=marks)


INNER = [
    ("a branch on the data", lambda m, y: y if y.sum() > 0 else -y, "must not branch on the data"),
    ("a loop over data", lambda m, y: y * sum(range(int(y[0, 0].abs()))), "must not branch on the data"),
    ("numpy", lambda m, y: torch.from_numpy(y.detach().numpy()), "could not be read by torch.export"),
    ("rows by a mask", lambda m, y: y[y[:, 0] > 0], "a shape depends on the data"),
    ("a custom gradient", lambda m, y: Sign.apply(y), "gradient"),
    (
        "complex numbers",
        lambda m, y: torch.view_as_real(torch.view_as_complex(y.view(-1, 2, 2)) ** 2).flatten(1),
        "view_as_complex",
    ),
    ("an unknown operation", lambda m, y: torch.special.bessel_j0(y), "bessel_j0"),
    ("a transposed view in place", lambda m, y: (z := y.tanh(), z.t().mul_(2))[0], "changes the result of t in place"),
    ("parts in place", lambda m, y: (z := y.tanh(), z.chunk(2, 1)[0].mul_(2))[0], "modified inplace"),
    ("numbers for a mask", lambda m, y: (z := y.tanh(), z.__setitem__(z < 0, 0.0))[0], "index_put"),
]


@pytest.mark.parametrize(
    ("between", "message"),
    [pytest.param(f, text, id=name) for name, f, text in INNER],
)
def test_what_a_layer_does_is_refused_by_its_name(between: Callable[..., Tensor], message: str) -> None:
    model = Whole(lambda m, x: m.inner(x), inner=Two(between))
    with pytest.raises(TraceError, match=message) as error:
        read(model, example())
    assert 'layer "inner" (Two)' in str(error.value) or "inner.a.weight" in str(error.value)


WRAPPED = [
    refused("DataParallel", lambda: nn.DataParallel(Two()), r"Give its \.module instead"),
    refused("DataParallel inside", lambda: nn.Sequential(nn.DataParallel(Two())), '"0" is a DataParallel'),
    refused("torch.compile", quietly(lambda: torch.compile(Two())), r"\._orig_mod"),
    refused("torch.compile inside", quietly(lambda: nn.Sequential(torch.compile(Two()))), '"0" is a OptimizedModule'),
    refused(
        "torch.jit.script", quietly(lambda: torch.jit.script(nn.Sequential(nn.Linear(N_IN, 2)))), "has lost its layers"
    ),
    refused("torch.jit.trace", quietly(lambda: torch.jit.trace(Two(), example())), "has lost its layers"),
    refused("torch.fx", lambda: torch.fx.symbolic_trace(Two()), "has lost its layers"),
    refused(
        "quantized", quietly(lambda: torch.ao.quantization.quantize_dynamic(Two(), {nn.Linear})), '"a" .* is quantized'
    ),
    refused("lazy", quietly(lambda: nn.Sequential(nn.LazyLinear(3))), '"0.weight" of a lazy layer'),
    refused("on meta", lambda: Two().to("meta"), '"a.weight" is on the meta device'),
]


@pytest.mark.parametrize(("make", "message"), WRAPPED)
def test_models_that_have_no_layers_or_numbers_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(make(), [example()])


REFUSED = [
    refused("random numbers", lambda: Two(lambda m, y: y + torch.rand(4)), "random numbers"),
    refused("dropout for ever", lambda: Two(lambda m, y: F.dropout(y)), "random numbers"),
    refused("no forward", nn.Module, "missing the required"),
    refused("a buffer that counts", counting(lambda m: m.seen.add_(1)), "changes seen"),
    refused(
        "a buffer that is replaced",
        counting(lambda m: (setattr(m, "seen", m.seen + 1), m.seen)[1]),
        "changes seen",
    ),
    refused("a parameter that is scaled", lambda: Two(scaled_), "changes .*b.weight"),
    refused(
        "a number that counts",
        counting(lambda m: (setattr(m, "calls", m.calls + 1), m.calls)[1]),
        "changes calls",
    ),
    refused(
        "a cache of another call",
        lambda: Two(lambda m, y: (last := m.last, setattr(m, "last", y), y * (1 if last is None else 2))[2], last=None),
        "changes last",
    ),
    refused("autocast", lambda: Whole(autocast), "autocast"),
    refused(
        "embedding with a maximal norm",
        lambda: Whole(lambda m, x: m.e(x.long().clamp(0, 2)), e=nn.Embedding(3, 4, max_norm=0.1)),
        "changes .*e.weight",
    ),
    refused("a fixed batch in a shape", lambda: Whole(lambda m, x: m.a(x.view(2, N_IN))), "cannot compute the example"),
    refused(
        "a fixed batch in a buffer",
        lambda: Whole(lambda m, x: m.a(x) + m.fixed, fixed=torch.randn(2, 4)),
        "only for 2 samples",
    ),
    refused(
        "another path for many samples",
        lambda: Whole(lambda m, x: m.a(x) * (1 if x.shape[0] < 100 else 2)),
        "more than 99 samples",
    ),
    refused(
        "squeeze of everything", lambda: Whole(lambda m, x: m.a(x)[:, :1].squeeze()), "depends on the number of samples"
    ),
    refused("the mean of the batch", lambda: Whole(lambda m, x: m.a(x - x.mean(0))), "along the batch dimension"),
    refused("one sample", lambda: Whole(lambda m, x: m.a(x)[0]), "along the batch dimension"),
    refused("nothing", lambda: Whole(lambda m, x: None), "returns no tensor"),
    refused("a word", lambda: Whole(lambda m, x: (m.a(x), "word")), "it returns a str"),
    refused("a size", lambda: Whole(lambda m, x: (m.a(x), x.shape[0])), "must return tensors"),
    refused("a set", lambda: Whole(lambda m, x: {m.a(x)}), "not a known type"),
    refused("keys that are numbers", lambda: Whole(lambda m, x: {0: m.a(x)}), "returns a dict"),
    refused("sparse", lambda: Whole(lambda m, x: m.a(x).to_sparse()), "dense|could not be read"),
    refused(
        "wrong inputs",
        lambda: Two(lambda m, y: m.wrong(y), wrong=nn.Linear(7, 2)),
        r'layer "wrong" \(Linear\) cannot compute',
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_models_that_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read(make(), example())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([torch.randn(2, 5)], r'layer "a" \(Linear\) cannot compute the example inputs: .*\(2, 5\)'),
        ([example().double()], r'layer "a" \(Linear\) .* dtype'),
        ([example(), example()], "takes 2 positional arguments but 3 were given"),
        ([], "missing 1 required positional argument"),
        ({"y": example()}, "unexpected keyword argument 'y'"),
        ({"x": "word"}, "example input x must be a tensor, got str"),
        ([None], "example input 0 must be a tensor, got NoneType"),
        ([[1.0, 2.0]], "example input 0 must be a tensor, got list"),
        ([example().numpy()], "example input 0 must be a tensor, got ndarray"),
        ([torch.randn(2, N_IN, dtype=torch.complex64)], "dtype|complex"),
        ([torch.tensor(2.0)], "batch dimension"),
        ([example().to("meta")], "example input 0 has no numbers"),
        ({"x": torch.tensor(2.0)}, "batch dimension"),
        ([torch.randn(0, N_IN)], "no samples"),
    ],
)
def test_examples_that_are_refused(inputs: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(Two(), inputs)


@pytest.mark.parametrize("thing", [None, 5, "resnet18", [nn.Linear(2, 2)], nn.Linear, torch.tanh])
def test_what_is_no_module_is_refused(thing: Any) -> None:
    with pytest.raises(TraceError, match=r"must be a torch\.nn\.Module"):
        trace(thing, [example()])
