"""Losses between layers: their formulas, by hand."""

import pytest
import torch

from penjing.errors import SettingError
from penjing.objective import attention_map, attention_transfer_loss, hint_loss, patient_loss, similarity_loss


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("loss", [hint_loss, attention_transfer_loss, patient_loss, similarity_loss])
def test_nothing_to_learn_where_both_are_equal(loss: object) -> None:
    x = drawn(4, 3, 5, 5).requires_grad_()
    found = loss(x, x.detach())  # type: ignore[operator]
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=1e-15) and x.grad.abs().max() < 1e-9  # type: ignore[union-attr]


def test_a_hint_is_half_the_mean_square() -> None:
    assert float(hint_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]))) == pytest.approx((4 + 1) / 4)


def test_attention_is_where_not_how_much_and_not_by_which_channel() -> None:
    x = drawn(2, 6, 4, 4)
    assert torch.allclose(attention_map(x), attention_map(-3 * x[:, torch.randperm(6)]))
    assert torch.allclose(attention_map(x).norm(dim=1), torch.ones(2, dtype=torch.float64))
    assert float(attention_transfer_loss(x, 5 * x.repeat(1, 2, 1, 1))) == pytest.approx(0, abs=1e-15)
    one, other = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    one[..., 0], other[..., 1] = 1, 1
    assert float(attention_transfer_loss(one, other)) == pytest.approx(2)  # two orthogonal unit vectors
    tokens = drawn(2, 5, 8)
    assert attention_map(tokens).shape == (2, 5)


def test_patience_is_two_minus_two_cosines() -> None:
    s, t = drawn(3, 4, 7), drawn(3, 4, 7, seed=1)
    expected = (2 - 2 * torch.nn.functional.cosine_similarity(s, t, dim=-1)).mean()
    assert float(patient_loss(s, t)) == pytest.approx(float(expected))
    assert float(patient_loss(3 * t, t)) == pytest.approx(0, abs=1e-15)


def test_similarities_are_of_pairs_and_no_rotation_changes_them() -> None:
    s, t = drawn(5, 3), drawn(5, 6, seed=1)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    cosine = torch.nn.functional.cosine_similarity
    expected = sum((cosine(s[i], s[j], 0) - cosine(t[i], t[j], 0)) ** 2 for i, j in pairs) / len(pairs)
    assert float(similarity_loss(s, t)) == pytest.approx(float(expected))
    rotation = torch.linalg.qr(drawn(6, 6, seed=2))[0]
    assert float(similarity_loss(2 * t @ rotation, t)) == pytest.approx(0, abs=1e-15)
    assert float(similarity_loss(s[:1], t[:1])) == 0


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="hint: student and teacher must have the same shape"):
        hint_loss(drawn(2, 3), drawn(2, 4))
    with pytest.raises(SettingError, match=r"patient: .*Put a learned regressor between them"):
        patient_loss(drawn(2, 3), drawn(2, 4))
    with pytest.raises(SettingError, match=r"the same places, got .*Choose layers of the same resolution"):
        attention_transfer_loss(drawn(2, 3, 4, 4), drawn(2, 3, 2, 2))
    with pytest.raises(SettingError, match="layers must give"):
        attention_transfer_loss(drawn(2, 3), drawn(2, 3))
    with pytest.raises(SettingError, match="the same samples, got 2 and 3"):
        similarity_loss(drawn(2, 3), drawn(3, 3))
