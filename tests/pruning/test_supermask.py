"""Supermasks: no weight learns, the gradient is straight-through, and what is settled computes what was learned."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from penjing.artifact import decode, encode
from penjing.graph import Network, trace
from penjing.measurement import answer
from penjing.pruning.supermask import LearnedMask, Supermask, draw_masks_, learn_masks_, settle_masks_, signed_constant
from penjing.representation import Codebook, representations
from penjing.training import Schedule, Task, Workbench, fit_


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)), [torch.randn(2, 6)])


def test_the_draw_is_bernoulli_and_its_gradient_the_sigmoids() -> None:
    mask = LearnedMask(torch.Size([200, 200]), rescale=False).train()
    with torch.no_grad():
        mask.logits.fill_(0.8)
    original = torch.randn(200, 200)
    out = mask(original)
    kept = out != 0
    assert torch.equal(out[kept], original[kept])
    p = torch.sigmoid(torch.tensor(0.8))
    assert kept.float().mean() == pytest.approx(float(p), abs=0.01)
    upstream = torch.randn(200, 200)
    (out * upstream).sum().backward()
    torch.testing.assert_close(mask.logits.grad, upstream * original * p * (1 - p))


def test_rescaling_makes_up_for_what_is_missing() -> None:
    mask = LearnedMask(torch.Size([30, 40]), rescale=True).eval()
    with torch.no_grad():
        mask.logits.copy_(torch.linspace(-1, 2, 1200).reshape(30, 40))
    mask.draw_()
    assert mask.chosen is not None
    out = mask(torch.ones(30, 40))
    assert out.sum() == pytest.approx(1200)
    assert out.detach().unique().tolist() == pytest.approx([0.0, 1200 / int(mask.chosen.sum())])


def test_a_signed_constant_keeps_signs_and_deviation() -> None:
    weight = torch.randn(50, 60)
    found = signed_constant(weight)
    assert torch.equal(found.sign(), weight.sign())
    assert float(found.abs().unique()) == pytest.approx(float(weight.std()))


@pytest.mark.parametrize("constant", [False, True])
def test_only_the_mask_learns_and_the_result_travels(network: Network, task: Task, constant: bool) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    learn_masks_(network, ["0", "2"], constant=constant, rescale=True)
    history = fit_(network, task, Schedule(epochs=60, lr=0.2, warmup=0.0))
    assert history.losses[-1] < 0.8 * history.losses[0]
    x = torch.randn(40, 6)
    draw_masks_(network.eval())
    expected = network(x)
    settle_masks_(network, constant=constant)
    torch.testing.assert_close(network(x), expected, rtol=0.02 if constant else 1e-5, atol=0.02 if constant else 1e-5)
    for path in ("0", "2"):
        layer, weight = network.get_submodule(path), network.get_submodule(path).weight.detach()
        assert torch.equal(layer.bias, before[f"{path}.bias"])
        keep = weight != 0
        if constant:
            assert len(weight[keep].abs().unique()) == 1
            assert isinstance(representations(layer, "weight")[-1], Codebook)
        else:
            ratio = (weight / before[f"{path}.weight"])[keep]
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # one scale for all
    loaded = decode(encode(network))
    assert torch.equal(loaded(x), network(x))


def test_a_draw_stays_and_another_seed_draws_another(network: Network) -> None:
    learn_masks_(network, ["0", "2"], constant=False, rescale=False)
    x = torch.randn(5, 6)
    assert not torch.equal(network(x), network(x))  # drawn anew in every pass
    outs = []
    for seed in (0, 1, 0):
        draw_masks_(network, torch.Generator().manual_seed(seed))
        outs.append(network(x))
        assert torch.equal(network(x), outs[-1])
    assert torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], outs[1])


def test_the_draw_that_does_best_on_the_validation_set_is_kept(network: Network, task: Task) -> None:
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    Supermask(epochs=5, draws=6, lr=0.2).apply(bench)
    values = bench.facts["draws"]["values"]
    assert len(values) == 6
    assert len(set(values)) > 1
    found = answer(bench.network, task, task.valid)
    assert float(task.metric.score(found.logits, found.labels).double().mean()) == pytest.approx(max(values))
