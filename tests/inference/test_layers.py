"""Compressed layers stand for their dense ones: at every kind of input, on every device, and in several threads."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import DataError, SettingError
from penjing.graph.ops import sign_through
from penjing.inference import CompressedLayer
from penjing.inference.layers import MANY, CodebookLinear, SignConv, SignLinear, SparseConv1x1, SparseLinear
from penjing.kernels import codebook

NAMES = ("sparse", "blocks", "conv1x1", "codes", "signs", "signs of signs", "conv of signs")


def pair(name: str) -> tuple[CompressedLayer, nn.Module, Tensor]:
    """A compressed layer, the dense one, and inputs of one sample."""
    torch.manual_seed(0)
    dense: nn.Module
    with torch.no_grad():
        if name in ("conv1x1", "conv of signs"):
            dense = nn.Conv2d(20, 13, 1) if name == "conv1x1" else nn.Conv2d(70, 13, 3, stride=2, padding=1)
            x = torch.randn(1, dense.in_channels, 7, 6)
        else:
            dense, x = nn.Linear(75, 22), torch.randn(1, 75)
        weight = dense.weight
        if name in ("sparse", "conv1x1"):
            weight.mul_(torch.rand_like(weight) > 0.8)
            return SparseLinear(dense) if name == "sparse" else SparseConv1x1(dense), dense, x
        if name == "blocks":
            weight.mul_((torch.rand(6, 1, 75) > 0.8).expand(6, 4, 75).reshape(24, 75)[:22])
            return SparseLinear(dense, in_blocks=True), dense, x
        scales = torch.rand(len(weight)) + 0.5
        if name == "codes":
            if not codebook.lanes_here():
                pytest.skip("this processor has neither AVX-512 nor AVX2")
            codes, table = torch.randint(0, 16, weight.shape), torch.randn(16)
            weight.copy_(table[codes] * scales[:, None])
            return CodebookLinear(dense, codes.to(torch.uint8), table, scales), dense, x
        codes = torch.where(weight >= 0, 1, -1)
        weight.copy_(codes * scales.view(-1, *[1] * (weight.dim() - 1)))
        if name == "conv of signs":
            return SignConv(dense, codes, scales), nn.Sequential(Signed(), dense), x
        of_signs = name == "signs of signs"
        own = SignLinear(dense, codes, scales, of_signs=of_signs)
        return own, nn.Sequential(Signed(), dense) if of_signs else dense, x


class Signed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sign_through(x)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(
        found, wanted, atol=1e-5 * (1 + float(wanted.abs().max())) if wanted.numel() else 0, rtol=0
    )


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_dense_layer(name: str) -> None:
    own, dense, x = pair(name)
    with torch.no_grad():
        for n in (1, 3, 9, MANY):
            samples = torch.randn(n, *x.shape[1:])
            close(own(samples), dense(samples))
        wide = torch.randn(*x.shape[1:], 2).movedim(-1, 0)
        assert not wide.is_contiguous()
        close(own(wide), dense(wide))
        assert own(x[:0]).shape == dense(x[:0]).shape
        weight = dense[1].weight if isinstance(dense, nn.Sequential) else dense.weight
        torch.testing.assert_close(own.weight(), weight)
        own.rectify = own.takes_rectifier
        close(own(x), F.relu(dense(x)) if own.rectify else dense(x))


@pytest.mark.parametrize("name", [name for name in NAMES if "conv" not in name])
def test_linear_layers_take_tokens_and_single_vectors(name: str) -> None:
    own, dense, _ = pair(name)
    with torch.no_grad():
        for x in (torch.randn(2, 5, 75), torch.randn(75)):
            close(own(x), dense(x))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_dense_layer(name: str) -> None:
    own, dense, x = pair(name)
    gradients = []
    for layer in (own, dense):
        inputs = (x * 0.5).requires_grad_(True)
        layer(inputs).square().sum().backward()
        assert inputs.grad is not None
        gradients.append(inputs.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert not list(own.parameters()), "the compressed weight is fixed"


@pytest.mark.parametrize("name", NAMES)
def test_other_types_and_devices_go_through_the_dense_weight(name: str) -> None:
    own, dense, x = pair(name)
    with torch.no_grad():
        close(own(x.double()), copy.deepcopy(dense).double()(x.double()))
        assert own(x.bfloat16()).dtype == torch.bfloat16
        if torch.cuda.is_available():
            close(copy.deepcopy(own).cuda()(x.cuda()).cpu(), dense(x))
        elsewhere = copy.deepcopy(own).to("meta")
        assert elsewhere(x.to("meta")).shape == dense(x).shape
        with pytest.raises(DataError, match="inputs are on cpu, the layer is on meta"):
            elsewhere(x)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles_compute_the_same(name: str) -> None:
    own, _, x = pair(name)
    file = io.BytesIO()
    torch.save(own, file)
    file.seek(0)
    with torch.no_grad():
        wanted = own(x)
        assert torch.equal(copy.deepcopy(own)(x), wanted)
        assert torch.equal(torch.load(file, weights_only=False)(x), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_many_threads_may_call_one_layer(name: str) -> None:
    own, _, x = pair(name)
    samples = [torch.randn(2, *x.shape[1:], generator=torch.Generator().manual_seed(k)) for k in range(32)]
    with torch.no_grad():
        wanted = [own(sample) for sample in samples]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(torch.no_grad()(own), samples * 4))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 4, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_inputs_of_another_shape_are_refused(name: str) -> None:
    own, _, x = pair(name)
    wrong = torch.randn(1, x.shape[1] + 1, *x.shape[2:])
    with pytest.raises(SettingError, match=f"must (have|be).*{x.shape[1]}"):
        own(wrong)


def test_weights_stay_small_in_memory() -> None:
    dense = nn.Linear(1024, 1024)
    codes = torch.randint(0, 16, (1024, 1024)).to(torch.uint8)
    if codebook.lanes_here():
        own = CodebookLinear(dense, codes, torch.randn(16), torch.ones(1024))
        assert own.n_bytes <= 4 * 1024 * 1024 / 8 + 2 * 4 * 1024 + 64
    own = SignLinear(dense, torch.where(codes < 8, 1, -1), torch.ones(1024), of_signs=True)
    assert own.n_bytes <= 4 * 1024 * 1024 / 32 + 2 * 4 * 1024
