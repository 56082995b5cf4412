"""Gates skip what they say they skip, learn which blocks are worth their cost, and are refused where they cannot help."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import penjing as pj
from penjing.dynamic import attach_exits
from penjing.dynamic.blocks import gate_blocks, residual_blocks
from penjing.dynamic.channel_sets import split_blocks
from penjing.dynamic.choices import bounded, choosing, drawn, likeliest, parts_of_gates
from penjing.dynamic.gates import GATES, feed_forward_gates, policy, recurrent_gates, settled_gates, with_gates
from penjing.dynamic.route_training import reward
from penjing.errors import SettingError, SurgeryError
from penjing.graph import Network, fold_batch_norms, trace
from penjing.measurement import answer, macs_by_node, macs_of_samples, macs_without_exits
from penjing.models import plain_cnn, resnet_cifar
from penjing.training import Task, Workbench

CLASSES = 2


class Blocks(nn.Module):
    """Two blocks: without the first every second sample is wrong, the second does nothing that matters."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 4))
        self.second = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 4))
        self.head = nn.Linear(4, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0.0, 0.0, 0.0], [6.0, 0.0, 0.0, 0.0]]))
            self.head.bias.zero_()
            for block in (self.first, self.second):
                block[2].weight.zero_()
                block[2].bias.zero_()
            # x0 is the answer where x1 > 0; else the block has to turn its sign: x0 - 2 x0
            first, last = self.first[0], self.first[2]
            first.weight.zero_()
            first.bias.zero_()
            first.weight[0, 0], first.weight[0, 1] = 1.0, -10.0
            first.weight[1, 0], first.weight[1, 1] = -1.0, -10.0
            last.weight[0, 0], last.weight[0, 1] = -2.0, 2.0

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        x = x + self.second(x)
        return self.head(x)


def _task(n: int = 1280) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    x[:, 1] = x[:, 1].sign()  # far on either side
    y = torch.where(x[:, 1] > 0, x[:, 0] > 0, x[:, 0] < 0).long()
    loader = DataLoader(TensorDataset(x, y), 64)
    return Task(train=loader, valid=loader)


def _network() -> Network:
    torch.manual_seed(0)
    return trace(Blocks(), (torch.randn(2, 4),)).eval()


def _resnet() -> Network:
    torch.manual_seed(0)
    model = resnet_cifar(14, width=4, classes=3)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return trace(model, (torch.randn(2, 3, 32, 32),)).eval()


def test_blocks_with_a_shape_of_their_own_are_found_and_others_not() -> None:
    blocks = residual_blocks(_resnet())
    assert [block.name for block in blocks] == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]
    assert [len(block.body) for block in blocks] == [6] * 4  # two convolutions, two norms, ReLU, the sum
    with pytest.raises(SurgeryError, match="no residual block"):
        residual_blocks(trace(plain_cnn(channels=1, widths=(4, 4)), (torch.randn(2, 1, 8, 8),)))


@pytest.mark.parametrize("make", [feed_forward_gates, recurrent_gates])
@pytest.mark.parametrize("which", ["resnet", "vectors"])
def test_open_gates_change_nothing_and_closed_ones_leave_the_shortcut(make: Any, which: str) -> None:
    network = _resnet() if which == "resnet" else _network()
    blocks = residual_blocks(network)
    gated, logits = make(network, blocks)
    gated, gates = with_gates(gated, [(name, 0) for name in logits])
    gated = gate_blocks(gated, blocks, gates).eval()
    x = torch.randn(5, *network.input_shapes[0])
    with torch.no_grad():
        assert all(bool(is_open.all()) for is_open in gated.route(x).opened.values())  # it leans that way
        assert torch.equal(gated(x), network(x))
        with choosing(gated, lambda _, z: torch.zeros_like(z)):
            found = gated(x)
        by_name = {node.name: node for node in network.nodes}
        shortcut = {block.end: by_name[block.end].inputs.index(block.start) for block in blocks}
        with network.replaced({end: (lambda *v, p=p: v[p]) for end, p in shortcut.items()}):
            expected = network(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make", [feed_forward_gates, recurrent_gates])
def test_gates_see_the_mean_of_every_row(make: Any) -> None:
    network = _resnet()
    blocks = residual_blocks(network)[:1]
    gated, (logits,) = make(network, blocks)
    layer = gated.get_submodule("routing.0")
    x = torch.randn(3, *network.input_shapes[0])
    found: list[Tensor] = []
    with torch.no_grad(), gated.seen({blocks[0].start: found.append, logits: found.append}):
        gated(x)
    maps, answer = found
    assert layer.in_features == maps.shape[1] * maps.shape[2]
    torch.testing.assert_close(answer, layer(maps.mean(3).flatten(1)))
    torch.testing.assert_close(layer(maps.flip(3).mean(3).flatten(1)), answer)  # mirrored images


def _gated(network: Network, kind: str) -> Network:
    blocks = residual_blocks(network)
    if kind == "policy":
        gated, logits = policy(network, len(blocks))
        columns = [(logits, k) for k in range(len(blocks))]
    else:
        gated, found = (recurrent_gates if kind == "recurrent" else feed_forward_gates)(network, blocks)
        columns = [(name, 0) for name in found]
    gated, gates = with_gates(gated, columns)
    return gate_blocks(gated, blocks, gates)


@pytest.mark.parametrize("kind", ["feed-forward", "recurrent", "policy"])
@pytest.mark.parametrize("which", ["resnet", "vectors"])
def test_gates_learn_from_standardised_numbers_and_cost_no_norm_afterwards(kind: str, which: str) -> None:
    network = _resnet() if which == "resnet" else _network()
    gated = _gated(network, kind).train()
    x = 2 + 3 * torch.randn(64, *network.input_shapes[0])
    for path, layer in gated.layers().items():
        if path.startswith("routing.") and isinstance(layer, nn.Linear):  # so that ways differ
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    norms = [node for node in gated.nodes if node.path.startswith("routing.norms.")]
    assert len(norms) == (1 if kind == "policy" else len(residual_blocks(network)))
    found: list[Tensor] = []
    with torch.no_grad():
        for _ in range(50):  # until running statistics are those of these samples
            gated(x)
        with gated.seen({norms[0].name: found.append}):
            gated(x)
    (seen,) = found
    torch.testing.assert_close(seen.mean(0), torch.zeros(seen.shape[1]), atol=1e-4, rtol=0)
    variances = seen.var(0, unbiased=False)
    variances = variances[variances > 0.5]  # a number that is the same for all has none
    torch.testing.assert_close(variances, torch.ones_like(variances), atol=0.1, rtol=0)
    assert len(variances) > 0.3 * seen.shape[1]

    gated.eval()
    settled = settled_gates(gated)
    assert not any("norms" in name for name in settled.state_dict())
    assert not any(node.path.startswith("routing.norms.") for node in settled.nodes)
    sources = list(dict.fromkeys(node.inputs[0] for node in gated.gates))
    logits: list[list[Tensor]] = []
    with torch.no_grad():
        for one in (gated, settled):
            logits.append([])
            with one.seen(dict.fromkeys(sources, logits[-1].append)):
                answers = one.route(x)
            if one is gated:
                expected = answers
    for before, after in zip(*logits, strict=True):
        torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    assert len(torch.unique(torch.stack(list(expected.opened.values()), 1), dim=0)) > 1
    assert all(torch.equal(answers.opened[name], is_open) for name, is_open in expected.opened.items())


@pytest.mark.parametrize(
    "stage",
    [
        pj.SkipBlocks(warm=1, epochs=1),
        pj.SkipBlocks(open=0.5, warm=0, epochs=1),
        pj.DropBlocks(curriculum=1, epochs=1),
        pj.RouteChannels(sets=2, warm=1, epochs=2),
    ],
)
def test_a_last_batch_may_have_one_sample(stage: Any) -> None:
    bench = Workbench(_network(), _task(65))
    stage.apply(bench)
    assert all(bool(tensor.isfinite().all()) for tensor in bench.network.state_dict().values())


def test_each_sample_goes_its_own_way_and_is_counted_so() -> None:
    network = _resnet()
    blocks = residual_blocks(network)
    gated, logits = policy(network, len(blocks))
    gated, gates = with_gates(gated, [(logits, k) for k in range(len(blocks))])
    gated = gate_blocks(gated, blocks, gates).eval()
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    ways = torch.bernoulli(torch.full((8, len(blocks)), 0.5))
    with torch.no_grad():
        with choosing(gated, lambda _, z: ways):
            together = gated.route(x)
            dense = gated.all_answers(x)[-1]
        alone = []
        for i in range(8):
            with choosing(gated, lambda _, z, i=i: ways[i : i + 1]):
                alone.append(gated(x[i : i + 1]))
    torch.testing.assert_close(together.answers, dense, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.answers, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.stack([together.opened[g] for g in gates], 1), ways > 0)
    by_node = macs_by_node(gated)
    each = [sum(by_node[name] for name in block.body) for block in blocks]
    fixed = sum(by_node.values()) - sum(each)
    assert macs_of_samples(gated, together.left_at, together.opened).tolist() == [
        fixed + sum(macs for macs, is_open in zip(each, way.tolist(), strict=True) if is_open) for way in ways
    ]


def test_channel_sets_are_the_first_channels_of_the_block() -> None:
    network = _resnet()
    blocks = residual_blocks(network)
    gated, logits = recurrent_gates(network, blocks, 4, lean=0.0)
    gated = split_blocks(gated, blocks, logits, 4).eval()
    x = torch.randn(4, 3, 32, 32)
    for sets in range(4):
        with torch.no_grad(), choosing(gated, lambda _, z, a=sets: torch.full((len(z),), a)):
            found, dense = gated.route(x), gated.all_answers(x)[-1]
        torch.testing.assert_close(found.answers, dense, rtol=1e-4, atol=1e-5)
        used = (sets + 1) / 4
        edges = {}
        for block in blocks:  # the second convolution of each block sees zeros behind the first sets
            by_name = {node.name: node for node in network.nodes}
            convolutions = [name for name in block.body if by_name[name].path.endswith("conv2")]
            edges[convolutions[0], 0] = lambda v, u=used: v * (torch.arange(v.shape[1]) < u * v.shape[1])[:, None, None]
        with torch.no_grad(), network.watched(edges):
            expected = network.all_answers(x)[-1]
        torch.testing.assert_close(found.answers, expected, rtol=1e-4, atol=1e-5)
        macs = macs_of_samples(gated, found.left_at, found.opened)
        own = sum(macs_by_node(gated)[name] for name in parts_of_gates(gated))
        total, inside = macs_without_exits(network), sum(macs_by_node(network)[n] for b in blocks for n in b.body)
        assert macs.tolist() == [total - inside + round(used * inside) + own] * 4
    assert macs_without_exits(gated) == macs_without_exits(network)


def test_what_a_policy_has_learned_is_folded_and_the_network_keeps_its_norms() -> None:
    torch.manual_seed(0)
    gated = _gated(_resnet(), "policy")
    for layer in gated.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    settled = settled_gates(gated.eval())
    folded, stayed = fold_batch_norms(settled, within=GATES)
    assert stayed == []
    left = {path for path, layer in folded.layers().items() if isinstance(layer, nn.BatchNorm2d)}
    assert left == {
        path for path, layer in gated.layers().items() if isinstance(layer, nn.BatchNorm2d) and "policy" not in path
    }
    x = torch.randn(4, *gated.input_shapes[0])
    with torch.no_grad():
        torch.testing.assert_close(folded(x), settled(x), rtol=1e-4, atol=1e-4)
    assert fold_batch_norms(settled, within="rout")[0].layers().keys() == settled.layers().keys()  # of no such module


def test_samples_that_are_taken_out_keep_their_layout() -> None:
    torch.manual_seed(0)
    gated = settled_gates(_gated(_resnet(), "feed-forward").eval())
    x = torch.randn(16, *gated.input_shapes[0])
    for node in gated.gates:  # open for half of the samples
        logits: list[Tensor] = []
        with torch.no_grad(), gated.seen({node.inputs[0]: logits.append}):
            gated.route(x)
            gated.get_submodule(f"routing.{gated.gates.index(node)}").bias -= logits[0].median()
    with torch.no_grad():
        expected = gated.route(x)
    assert all(bool(is_open.any()) and not bool(is_open.all()) for is_open in expected.opened.values())
    last = copy.deepcopy(gated).to(memory_format=torch.channels_last)
    seen: dict[str, bool] = {}
    for path, layer in last.layers().items():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(
                lambda _, given, p=path: seen.update({p: given[0].is_contiguous(memory_format=torch.channels_last)})
            )
    with torch.no_grad():
        found = last.route(x.contiguous(memory_format=torch.channels_last))
    assert seen and all(seen.values())
    torch.testing.assert_close(found.answers, expected.answers, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(found.opened[name], own) for name, own in expected.opened.items())


def test_there_may_be_more_sets_than_a_gate_has_numbers() -> None:
    torch.manual_seed(0)
    network = trace(resnet_cifar(14, width=16), (torch.randn(2, 3, 8, 8),))
    blocks = residual_blocks(network)
    gated, logits = recurrent_gates(network, blocks, 12, lean=0.0)
    gated = split_blocks(gated, blocks, logits, 12).eval()
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad(), choosing(gated, likeliest_of_all) as choices:
        together = gated(x)
    assert all(z.shape == (3, 12) for z in choices.logits.values())
    with torch.no_grad():
        torch.testing.assert_close(together, torch.cat([gated(one) for one in x.split(1)]), rtol=1e-4, atol=1e-5)


def likeliest_of_all(_: str, logits: Tensor) -> Tensor:
    return logits.argmax(1)


def test_gates_are_a_small_part() -> None:
    network = trace(resnet_cifar(20), (torch.randn(2, 3, 32, 32),))
    blocks = residual_blocks(network)
    for gated in (recurrent_gates(network, blocks)[0], feed_forward_gates(network, blocks)[0], policy(network, 8)[0]):
        extra = sum(macs_by_node(gated).values()) - macs_without_exits(network)
        assert 0 < extra < 0.05 * macs_without_exits(network)


def test_the_reward_is_that_of_the_paper() -> None:
    right, used = torch.tensor([True, True, False, True]), torch.tensor([1.0, 0.0, 0.3, 0.5])
    assert reward(right, used, 5.0).tolist() == [0.0, 1.0, -5.0, 0.75]
    assert bounded(torch.tensor([0.0, 0.5, 1.0]), 0.8).tolist() == pytest.approx([0.2, 0.5, 0.8])


def test_gates_that_learn_alone_give_no_gradient_to_what_they_look_at() -> None:
    network = _network()
    blocks = residual_blocks(network)
    gated, logits = recurrent_gates(network, blocks)
    gated, gates = with_gates(gated, [(name, 0) for name in logits])
    gated = gate_blocks(gated, blocks, gates).train()
    torch.manual_seed(0)
    with choosing(gated, drawn(), detached=True) as choices:
        gated(torch.randn(6, 4))
    assert choices.opened().shape == (6, 2)
    choices.log_probabilities().sum().backward()
    assert gated.get_submodule("first").get_submodule("0").weight.grad is None
    assert float(gated.get_submodule("routing.0").weight.grad.abs().sum()) > 0
    taken, logits_ = torch.cat(list(choices.taken.values()), 1), torch.cat(list(choices.logits.values()), 1)
    p = torch.sigmoid(logits_)
    torch.testing.assert_close(choices.log_probabilities(), torch.where(taken > 0, p, 1 - p).log())


REINFORCED: dict[str, Any] = {"warm": 1, "epochs": 25, "alpha": 1.0, "reward_weight": 1.0, "lr": 0.01, "gate_lr": 3.0}
STAGES: dict[str, Any] = {
    "skip, reinforced": pj.SkipBlocks(warm=1, epochs=25, alpha=1.0, reward_weight=1.0, lr=0.01, gate_lr=3.0),
    "skip, feed-forward": pj.SkipBlocks(
        gates="feed-forward", warm=1, epochs=25, alpha=1.0, reward_weight=1.0, lr=0.01, gate_lr=3.0
    ),
    "drop": pj.DropBlocks(curriculum=25, epochs=5, penalty=2.0, policy_lr=0.01, lr=0.003, gate_lr=1.0, entropy=0.02),
}


@pytest.mark.parametrize("name", list(STAGES))
def test_gates_learn_who_needs_which_block(name: str) -> None:
    """The first block is computed for the samples that need it, the second for hardly any; accuracy stays."""
    task = _task()
    bench = Workbench(_network(), task)
    before = answer(bench.network, task, task.valid)
    STAGES[name].apply(bench)
    after = answer(bench.network, task, task.valid)
    right = [float((a.logits.argmax(1) == a.labels).double().mean()) for a in (before, after)]
    assert right[0] > 0.99 and right[1] > 0.97
    first, second = (after.opened[node.name] for node in bench.network.gates)
    x = torch.cat([batch.args[0] for batch in task.batches(task.valid)])
    needs = x[:, 1] < 0
    assert float(first[needs].double().mean()) > 0.95 and float(first[~needs].double().mean()) < 0.3
    assert float(second.double().mean()) < 0.2
    assert not any("collapsed" in text for text in bench.warnings)


def test_gumbel_gates_open_as_often_as_asked() -> None:
    task = _task()
    bench = Workbench(_network(), task)
    pj.SkipBlocks(open=0.4, warm=5, epochs=20, lr=0.01, gate_lr=1.0).apply(bench)
    found = answer(bench.network, task, task.valid)
    share = float(torch.stack(list(found.opened.values())).double().mean())
    assert abs(share - 0.4) < 0.15
    assert float((found.logits.argmax(1) == found.labels).double().mean()) > 0.97


def test_an_agent_uses_fewer_channels_where_that_costs_nothing() -> None:
    """Both blocks think with their first half alone, so the second half is worth nothing."""
    task = _task()
    bench = Workbench(_network(), task)
    pj.RouteChannels(sets=2, penalty=0.2, warm=0, epochs=16, lr=0.01, gate_lr=1.0).apply(bench)
    found = answer(bench.network, task, task.valid)
    assert float((found.logits.argmax(1) == found.labels).double().mean()) > 0.95
    macs = macs_of_samples(bench.network, found.left_at, found.opened).double().mean()  # type: ignore[arg-type]
    assert float(macs) < 0.75 * macs_without_exits(bench.network) + 500


def test_a_policy_that_has_collapsed_is_told() -> None:
    bench = Workbench(_network(), _task(128))
    pj.SkipBlocks(warm=0, epochs=0).apply(bench)
    assert any("every block is computed for every sample" in text for text in bench.warnings)
    assert bench.facts["different ways on validation"] == 1 and bench.facts["open on validation, first"] == "100.0%"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (pj.SkipBlocks(epochs=0, warm=0), "the network has gates already"),
        (pj.EarlyExits(after=("first.1",), epochs=1, saving=0.01), None),
    ],
)
def test_what_comes_after_gates(stage: Any, message: str | None) -> None:
    bench = Workbench(_network(), _task(128))
    pj.SkipBlocks(warm=0, epochs=0).apply(bench)
    if message is None:
        with pytest.raises((SettingError, SurgeryError)):
            stage.apply(bench)  # an exit within a block that not every sample enters
    else:
        with pytest.raises(SettingError, match=message):
            stage.apply(bench)


def test_gates_are_refused_where_they_make_no_sense() -> None:
    early = _network()
    early = attach_exits(early, [residual_blocks(early)[0].end])
    with pytest.raises(SettingError, match="has several answers"):
        pj.SkipBlocks(epochs=0, warm=0).apply(Workbench(early, _task(128)))
    with pytest.raises(SettingError, match="cannot be split into 9 sets"):
        pj.RouteChannels(sets=9, epochs=0, warm=0).apply(Workbench(_network(), _task(128)))
    regression = Task(train=[], valid=[], loss=nn.functional.mse_loss, metric=pj.Metric("error", lambda a, b: a))
    with pytest.raises(SettingError, match="rewards need classification"):
        pj.DropBlocks(epochs=0).apply(Workbench(_network(), regression))


def test_likeliest_is_a_half() -> None:
    assert likeliest("", torch.tensor([[-0.1, 0.1]])).tolist() == [[0.0, 1.0]]
