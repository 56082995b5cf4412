"""The choice of weights against brute force, structures, and masks on a network."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.errors import SettingError, SurgeryError
from penjing.graph import Network, trace
from penjing.pruning.masks import apply_masks_, choose_masks, density_by_layer, masks_of, sparsity_of
from penjing.pruning.structures import n_of_m, read_structure, units
from penjing.quantization.cluster import cluster_
from penjing.representation import representations
from penjing.sensitivity import layer_weights


def kept_score(scores: dict[str, Tensor], masks: dict[str, Tensor]) -> float:
    return sum(float(score.double()[masks[name]].sum()) for name, score in scores.items())


@given(
    st.lists(st.integers(-20, 20), min_size=4, max_size=8),
    st.sampled_from(["global", "layer"]),
    st.floats(0, 1),
)
def test_the_mask_is_the_brute_force_optimum(values: list[int], scope: str, sparsity: float) -> None:
    """No other mask of as many weights, with one at least in each layer, keeps a larger sum."""
    half = len(values) // 2
    scores = {"a": torch.tensor(values[:half]).float()[:, None], "b": torch.tensor(values[half:]).float()[:, None]}
    masks, _ = choose_masks(scores, sparsity, scope=scope)  # type: ignore[arg-type]
    groups = [["a", "b"]] if scope == "global" else [["a"], ["b"]]
    for names in groups:
        own = {name: scores[name] for name in names}
        n_all = sum(s.numel() for s in own.values())
        n_kept = max(n_all - round(sparsity * n_all), len(own))
        assert sum(int(masks[name].sum()) for name in names) == n_kept
        best = max(
            sum(v for chosen in combination for v in chosen)
            for combination in itertools.product(
                *(
                    [c for k in range(1, s.numel() + 1) for c in itertools.combinations(s.flatten().tolist(), k)]
                    for s in own.values()
                )
            )
            if sum(map(len, combination)) == n_kept
        )
        assert kept_score(own, masks) == pytest.approx(best)
    assert all(mask.any() for mask in masks.values())


def test_magnitude_masks_keep_the_largest() -> None:
    scores = {"a": torch.rand(20, 30), "b": torch.rand(7, 3)}
    masks, notes = choose_masks(scores, 0.8)
    everything = torch.cat([s.flatten() for s in scores.values()])
    threshold = everything.kthvalue(round(0.8 * len(everything))).values
    assert not notes
    for name, score in scores.items():
        assert torch.equal(masks[name], score > threshold)


def test_rows_lose_the_same_fraction() -> None:
    scores = {"a": torch.rand(6, 2, 5)}
    masks, _ = choose_masks(scores, 0.7, scope="row")
    mask = masks["a"]
    assert mask.flatten(1).sum(1).tolist() == [3] * 6
    lowest = torch.where(mask, scores["a"], torch.inf).flatten(1).amin(1)
    assert (torch.where(mask, -torch.inf, scores["a"]).flatten(1).amax(1) <= lowest).all()


def test_equal_scores_go_in_order_of_position() -> None:
    masks, _ = choose_masks({"a": torch.ones(2, 3), "b": torch.ones(1, 2)}, 0.5)
    assert masks["a"].tolist() == [[False, False, False], [False, True, True]]
    assert masks["b"].all()


def test_what_is_gone_stays_gone_and_counts() -> None:
    score = torch.arange(10.0)[None]
    earlier = torch.tensor([True] * 5 + [False] * 5)[None]  # the best are gone
    masks, _ = choose_masks({"a": score}, 0.7, already={"a": earlier})
    assert masks["a"].tolist() == [[False] * 2 + [True] * 3 + [False] * 5]
    masks, _ = choose_masks({"a": score}, 0.3, already={"a": earlier})
    assert torch.equal(masks["a"], earlier)


def test_a_layer_keeps_its_last_weight_and_it_is_said() -> None:
    scores = {"small": torch.tensor([[0.1, 0.2]]), "large": torch.tensor([[5.0, 6.0, 7.0, 8.0]])}
    masks, notes = choose_masks(scores, 0.5)
    assert masks["small"].tolist() == [[False, True]]
    assert masks["large"].tolist() == [[False, False, True, True]]
    assert notes == ["small: all of its weights would have gone; the best stay"]
    masks, notes = choose_masks(scores, 1.0)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1]
    assert "only 4 of 6 weights of 2 layers can go: the best stay" in notes
    masks, notes = choose_masks(scores, 0.9, scope="row")
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1]
    assert len(notes) == 2


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4)]), st.booleans())
def test_n_of_m_keeps_exactly_n_of_every_m(rows: int, groups: int, form: tuple[int, int], conv: bool) -> None:
    n, m = form
    score = torch.rand(rows, groups * m, *((3, 3) if conv else ()))
    mask = n_of_m(score, n, m)
    assert mask is not None
    grouped = mask.movedim(1, -1).unflatten(-1, (-1, m))
    assert (grouped.sum(-1) == n).all()
    values = score.movedim(1, -1).unflatten(-1, (-1, m))
    best = values.topk(n).values.amin(-1, keepdim=True)
    assert torch.equal(grouped, values >= best)  # random numbers differ


def test_two_of_four_on_layers_that_do_not_divide_is_reported() -> None:
    scores = {"conv": torch.rand(4, 3, 5, 5), "linear": torch.rand(4, 8)}
    masks, notes = choose_masks(scores, 0.5, structure="2:4")
    assert notes == ["conv: left as it is, its 3 inputs are no multiple of 4"]
    assert masks["conv"].all() and int(masks["linear"].sum()) == 16
    earlier = torch.ones(4, 8, dtype=torch.bool)
    earlier[0, :3] = False
    masks, _ = choose_masks({"linear": scores["linear"]}, 0.5, structure="2:4", already={"linear": earlier})
    assert masks["linear"][0, :4].tolist() == [False, False, False, True]
    with pytest.raises(SettingError, match=r"2:4 removes 0.5 of the weights, got sparsity 0.8"):
        choose_masks(scores, 0.8, structure="2:4")


def test_blocks_and_filter_shapes_go_as_a_whole() -> None:
    score = torch.rand(6, 2, 3, 3)
    for text, side in (("4x1", (4, 1)), ("2x3", (2, 3)), ("filter-shapes", (6, 1))):
        masks, _ = choose_masks({"a": score}, 0.5, structure=text)
        matrix, values = masks["a"].flatten(1), score.flatten(1)
        means = {}
        for top in range(0, 6, side[0]):
            for left in range(0, 18, side[1]):
                block = matrix[top : top + side[0], left : left + side[1]]
                assert block.all() or not block.any()
                means[top, left] = (float(values[top : top + side[0], left : left + side[1]].mean()), bool(block.all()))
        assert max(m for m, stays in means.values() if not stays) <= min(m for m, stays in means.values() if stays)
        assert abs(float(matrix.float().mean()) - 0.5) <= side[0] * side[1] / 108
    assert units(torch.Size((4, 3)), read_structure("2x2")).tolist() == [[0, 0, 1], [0, 0, 1], [2, 2, 3], [2, 2, 3]]


@pytest.mark.parametrize("text", ["4:2", "0:4", "2:2", "4x0", "block", "2:4:8", ""])
def test_structures_that_do_not_exist(text: str) -> None:
    with pytest.raises(SettingError, match='"weights", N:M'):
        read_structure(text)


def test_settings_out_of_range_are_refused() -> None:
    scores = {"a": torch.rand(2, 2)}
    with pytest.raises(SettingError, match=r"\[0, 1\], got 80. Write 0.8 to remove 80 %"):
        choose_masks(scores, 80)
    with pytest.raises(SettingError, match='no scope "layers"; did you mean "layer"'):
        choose_masks(scores, 0.5, scope="layers")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="run through several rows"):
        choose_masks(scores, 0.5, scope="row", structure="4x1")
    with pytest.raises(SettingError, match="scores of a are not finite"):
        choose_masks({"a": torch.tensor([[torch.nan]])}, 0.5)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return trace(nn.Sequential(*layers), (torch.randn(2, 1, 4, 4),)).eval()


def test_masks_on_a_network_zero_the_weights_and_meet(network: Network) -> None:
    before = layer_weights(network)
    masks, _ = choose_masks({name: w.abs() for name, w in before.items()}, 0.5)
    apply_masks_(network, masks)
    assert sparsity_of(network) == pytest.approx(0.5)
    for name, value in layer_weights(network).items():
        assert torch.equal(value, before[name] * masks[name])
    second = {"4.weight": torch.rand(3, 16) < 0.5}
    apply_masks_(network, second)
    assert torch.equal(masks_of(network)["4.weight"], masks["4.weight"] & second["4.weight"])
    assert len(representations(network.get_submodule("4"), "weight")) == 1
    assert density_by_layer(network)["0"] == pytest.approx(float(masks["0.weight"].double().mean()))


def test_masks_that_do_not_fit_are_refused(network: Network) -> None:
    with pytest.raises(SettingError, match=r'no weight "4.weigth" of a layer; did you mean "4.weight"'):
        apply_masks_(network, {"4.weigth": torch.ones(3, 16)})
    with pytest.raises(SettingError, match=r"has shape \(3, 16\), its mask \(16, 3\)"):
        apply_masks_(network, {"4.weight": torch.ones(16, 3)})
    cluster_(network.get_submodule("4"), "weight", 4)
    with pytest.raises(SurgeryError, match=r"4.weight is a codebook already.*Prune weights before"):
        apply_masks_(network, {"4.weight": torch.ones(3, 16)})
