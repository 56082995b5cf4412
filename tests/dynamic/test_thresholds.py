"""Thresholds save what was asked, lose no more than was allowed, and say where a set is too small for either."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from penjing.dynamic import AtExits, for_drop, for_saving
from penjing.dynamic.thresholds import checked
from penjing.errors import SettingError
from penjing.graph import NEVER

MACS, FULL = [300, 650, 1050], 1000


def _exits(seed: int, n: int = 40) -> AtExits:
    """Later exits are right more often, sure answers more often right, and some samples are equally sure."""
    generator = torch.Generator().manual_seed(seed)
    confidences = torch.rand(2, n, generator=generator)
    confidences[:, ::5] = 0.75
    chance = torch.cat([confidences * torch.tensor([[0.9], [1.0]]), torch.full((1, n), 0.95)])
    right = (torch.rand(3, n, generator=generator) < chance).double()
    return AtExits(confidences, right, MACS, FULL)


def _by_hand(at: AtExits, thresholds: list[float]) -> tuple[float, float]:
    """Saving and accuracy, sample by sample."""
    work, right = 0, 0.0
    for i, column in enumerate(at.confidences.T.tolist()):
        k = next((k for k, (c, t) in enumerate(zip(column, thresholds, strict=True)) if c >= t), len(thresholds))
        work += at.macs[k]
        right += float(at.right[k, i])
    n = at.confidences.shape[1]
    return 1 - work / n / at.full, right / n


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("saving", [0.05, 0.2, 0.4])
def test_the_common_threshold_is_the_highest_that_saves_enough(seed: int, saving: float) -> None:
    at = _exits(seed)
    found = for_saving(at, saving)
    assert len(set(found)) == 1 and _by_hand(at, found)[0] >= saving
    own, *higher = torch.unique(at.confidences[at.confidences > found[0]]).tolist()
    assert (
        own - found[0] < 2e-5 and _by_hand(at, [own] * 2)[0] >= saving
    )  # just below it: who is there leaves in any batch
    assert _by_hand(at, [higher[0]] * 2)[0] < saving


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("saving", [0.05, 0.2, 0.4, 0.6])
def test_geometric_thresholds_save_enough_and_hardly_more(seed: int, saving: float) -> None:
    at = _exits(seed, 1000)
    found = for_saving(at, saving, "geometric")
    saved = _by_hand(at, found)[0]
    assert saving <= saved < saving + 0.06  # a fifth of the samples is equally sure and leaves together
    assert saved == pytest.approx(float(at.saving(found).mean()))


def test_shares_are_those_of_the_paper() -> None:
    """q_k = z (1 - q)^(k - 1) q, all confidences different."""
    n, q = 10_000, 0.4
    generator = torch.Generator().manual_seed(0)
    confidences = torch.stack([torch.randperm(n, generator=generator), torch.randperm(n, generator=generator)]) / n
    at = AtExits(confidences.float(), torch.ones(3, n), MACS, FULL)
    weights = [(1 - q) ** k * q for k in range(3)]
    shares = [w / sum(weights) for w in weights]
    cost = sum(share * macs for share, macs in zip(shares, MACS, strict=True))
    left = at.left_at(for_saving(at, 1 - cost / FULL, "geometric"))
    for k, share in enumerate(shares):
        assert float((left == k).double().mean()) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("kind", ["common", "geometric"])
def test_a_saving_out_of_reach_says_how_far_one_can_go(kind: str) -> None:
    with pytest.raises(
        SettingError, match=r"saving 80.0% of the MACs is out of reach: 30.0% .* so 0.0% to 70.0% is possible"
    ):
        for_saving(_exits(0), 0.8, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["common", "geometric"])
@pytest.mark.parametrize("drop", [0.0, 0.02, 0.1, 0.9])
def test_no_more_accuracy_is_lost_than_allowed(kind: str, drop: float) -> None:
    at = _exits(1, 2000)
    found = for_drop(at, drop, kind)  # type: ignore[arg-type]
    saved, accuracy = _by_hand(at, found)
    assert accuracy >= float(at.right[-1].mean()) - drop
    if drop == 0.9:
        assert saved == pytest.approx(0.7)  # everybody leaves at the first exit


def test_nobody_leaves_where_leaving_costs_accuracy() -> None:
    right = torch.zeros(3, 50)
    right[-1] = 1
    at = AtExits(torch.rand(2, 50, generator=torch.Generator().manual_seed(0)), right, MACS, FULL)
    assert for_drop(at, 0.0) == [NEVER, NEVER]


def test_among_all_thresholds_none_saves_more_at_that_accuracy() -> None:
    at = _exits(3, 30)
    found = for_drop(at, 0.1)
    limit = float(at.right[-1].mean()) - 0.1
    best = max(
        saved
        for t in torch.unique(at.confidences).tolist()
        for saved, accuracy in [_by_hand(at, [t, t])]
        if accuracy >= limit - 1e-12
    )
    assert _by_hand(at, found)[0] == pytest.approx(max(best, 0.0))


def test_a_small_set_is_told_with_its_interval() -> None:
    notes: list[str] = []
    at = _exits(0, 40)
    thresholds = for_saving(at, 0.3)
    facts = checked(at, thresholds, notes.append)
    saved: Tensor = at.saving(thresholds)
    half = 1.96 * float(saved.std(correction=0)) / math.sqrt(40)
    assert (
        facts["saved on validation"]
        == f"{float(saved.mean()):.1%} [{saved.mean() - half:.1%}, {saved.mean() + half:.1%}]"
    )
    assert len(notes) == 1 and "with 40 samples the 95 % intervals are wide" in notes[0]
    many: list[str] = []
    large = _exits(0, 20_000)
    checked(large, for_saving(large, 0.3), many.append)
    assert not many


def test_left_at_is_the_first_exit_that_is_sure() -> None:
    at = _exits(2, 300)
    for thresholds in itertools.product([0.2, 0.75, NEVER], repeat=2):
        left = at.left_at(thresholds)
        for i, k in enumerate(left.tolist()):
            sure = [float(c) >= t for c, t in zip(at.confidences[:, i], thresholds, strict=True)]
            assert k == (sure.index(True) if any(sure) else 2)
