"""Layers that compute with compressed weights: the weight stays as it is stored, and is never made dense while a kernel runs.

Each takes what the layer that it stands for takes and gives the same within rounding: sums are added in another order. What
the kernels do not take goes through the dense weight, made for that call: other devices and types, and inputs that need a
gradient, which is that of the dense layer. The weight itself is fixed; train the network that was loaded `for_training`.
"""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import DataError, SettingError
from penjing.graph.ops import sign_through
from penjing.kernels import codebook, signs, sparse

MANY = 64
"""From so many samples on a dense weight that is made first is faster than a kernel that takes one sample after the other."""


class CompressedLayer(nn.Module):
    """A linear layer or a convolution with a compressed weight.

    Attributes:
        way: what its kernel is called in tables.
        shape: of the weight that it stands for.
        rectify: a ReLU behind the layer is computed with it.
    """

    way: ClassVar[str]
    takes_rectifier: ClassVar[bool] = True
    bias: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.shape = tuple(layer.weight.shape)
        self.rectify = False
        bias = torch.zeros(self.shape[0]) if layer.bias is None else layer.bias.detach().float().cpu()
        self._hold("bias", bias)
        self.eval()

    @abstractmethod
    def weight(self) -> Tensor:
        """The dense weight that it computes with, on the device where the compressed one is."""

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """What the kernel gives for float32 inputs on the CPU."""

    @abstractmethod
    def run_dense(self, x: Tensor) -> Tensor:
        """The same through the dense weight, without the ReLU."""

    @property
    def n_bytes(self) -> int:
        """What the layer takes in memory."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        here = x.is_cpu and self._buffers["bias"].is_cpu  # type: ignore[union-attr]
        if here and x.dtype is torch.float32 and not (x.requires_grad and torch.is_grad_enabled()):
            return self.run(x)
        if x.device != self.bias.device:
            raise DataError(
                f"{self.way}: inputs are on {x.device}, the layer is on {self.bias.device}. Move one of them."
            )
        y = self.run_dense(x)
        return F.relu(y) if self.rectify else y

    def _hold(self, name: str, array: "np.ndarray | Tensor") -> None:
        """Keep an array, aligned as torch aligns, not as a part of the state dict.

        Words are signed here: torch does not pickle unsigned ones.
        """
        tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
        self.register_buffer(name, tensor.clone(memory_format=torch.contiguous_format), persistent=False)

    def _addresses(self, *names: str) -> list[int]:
        """Where buffers lie now; they are asked for in every call, since tensors move."""
        return [self._buffers[name].data_ptr() for name in names]  # type: ignore[union-attr]

    def extra_repr(self) -> str:
        return f"{self.way}, {tuple(self.shape)}, {self.n_bytes:,} bytes{', with ReLU' * self.rectify}"


class _Linear(CompressedLayer):
    def run_dense(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return x.new_empty((*x.shape[:-1], self.shape[0]))
        return F.linear(x, self.weight().to(x.dtype), self.bias.to(x.dtype))

    def _answers(self, x: Tensor) -> Tensor:
        """Room for the answers."""
        shape, (n_out, n_in) = x.shape, self.shape
        if shape[-1] != n_in:
            raise SettingError(f"{self.way}: inputs must have {n_in} features, got shape {tuple(shape)}.")
        return torch.empty((shape[0], n_out) if len(shape) == 2 else (*shape[:-1], n_out))

    def _dense(self, x: Tensor) -> Tensor:
        y = self.run_dense(x)
        return F.relu(y) if self.rectify else y


class SparseLinear(_Linear):
    """y = W x + b with the weights that are not 0, and their columns; see `kernels.sparse`.

    Args:
        in_blocks: blocks of 4 rows that share their columns.
    """

    way = "sparse"
    groups: Tensor
    starts: Tensor

    def __init__(self, layer: nn.Linear, *, in_blocks: bool = False) -> None:
        super().__init__(layer)
        matrix = layer.weight.detach().float().cpu().numpy()
        groups, starts = (sparse.pack_blocks if in_blocks else sparse.pack)(matrix)
        sparse.check(groups, starts, matrix.shape)
        self.in_blocks = in_blocks
        self._hold("groups", groups)
        self._hold("starts", starts)

    def weight(self) -> Tensor:
        return _from_groups(self.groups, self.starts, (self.shape[0], self.shape[1]))

    def run(self, x: Tensor) -> Tensor:
        y, x, n = self._answers(x), x.contiguous(), x.numel() // self.shape[1]
        packed = self._addresses("groups", "starts", "bias")
        if n >= 8 and not self.in_blocks:
            columns, found = x.reshape(n, -1).t().contiguous(), torch.empty(self.shape[0], n)
            sparse.times_columns(*packed, columns.data_ptr(), found.data_ptr(), *self.shape, n, self.rectify)
            return found.t().reshape(y.shape)
        kernel = sparse.blocks_times_vectors if self.in_blocks else sparse.times_vectors
        kernel(*packed, x.data_ptr(), y.data_ptr(), *self.shape, n, self.rectify)
        return y


class SparseConv1x1(CompressedLayer):
    """A 1 x 1 convolution with the weights that are not 0; see `kernels.sparse`."""

    way = "sparse"
    groups: Tensor
    starts: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        matrix = layer.weight.detach().float().cpu().flatten(1).numpy()
        groups, starts = sparse.pack(matrix)
        sparse.check(groups, starts, matrix.shape)
        self._hold("groups", groups)
        self._hold("starts", starts)

    def weight(self) -> Tensor:
        return _from_groups(self.groups, self.starts, (self.shape[0], self.shape[1])).view(self.shape)

    def run_dense(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return x.new_empty((len(x), self.shape[0], *x.shape[2:]))
        return F.conv2d(x, self.weight().to(x.dtype), self.bias.to(x.dtype))

    def run(self, x: Tensor) -> Tensor:
        _check_channels(self, x)
        x, (n_out, n_in) = x.contiguous(), self.shape[:2]
        y, places = torch.empty(len(x), n_out, *x.shape[2:]), x.shape[2] * x.shape[3]
        packed = self._addresses("groups", "starts", "bias")
        for s in range(len(x)):
            here, there = x.data_ptr() + 4 * s * n_in * places, y.data_ptr() + 4 * s * n_out * places
            sparse.times_columns(*packed, here, there, n_out, n_in, places, self.rectify)
        return y


class CodebookLinear(_Linear):
    """y = diag(scale) table[codes] x + b with 4-bit codes; see `kernels.codebook`.

    Args:
        codes: uint8, (out, in), below 16. table: float32, (16,). scales: float32, (out,).
    Raises: SettingError: the processor has no instruction for it.
    """

    way = "codebook"
    words: Tensor
    table: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, codes: Tensor, table: Tensor, scales: Tensor) -> None:
        super().__init__(layer)
        if not codebook.lanes_here():
            raise SettingError("codebook: this processor has neither AVX-512 nor AVX2; use the dense layer.")
        self._hold("words", codebook.pack(codes.cpu().numpy()).view(np.int32))
        self._hold("table", table.detach().float().cpu())
        self._hold("scales", scales.detach().float().cpu())

    def weight(self) -> Tensor:
        codes = torch.stack([self.words >> 4 * k & 15 for k in range(8)], 2).reshape(self.shape[0], -1)[
            :, : self.shape[1]
        ]
        return self.table[codes] * self.scales[:, None]

    def run(self, x: Tensor) -> Tensor:
        y, x, n = self._answers(x), x.contiguous(), x.numel() // self.shape[1]
        if n >= MANY:
            return self._dense(x)
        packed = self._addresses("words", "table", "scales", "bias")
        codebook.times_vectors(*packed, x.data_ptr(), y.data_ptr(), *self.shape, n, self.rectify)
        return y


class SignLinear(_Linear):
    """y = diag(scale) signs x + b with a bit a weight; see `kernels.signs`.

    Args:
        codes: (out, in), -1 or 1. scales: float32, (out,).
        of_signs: it takes the signs of its inputs, sign(0) = +1, whatever these are, and counts.
    """

    way = "signs"
    words: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, codes: Tensor, scales: Tensor, *, of_signs: bool) -> None:
        super().__init__(layer)
        self.of_signs = of_signs
        self._hold("words", signs.pack(codes.cpu().numpy()).view(np.int64))
        self._hold("scales", scales.detach().float().cpu())

    def weight(self) -> Tensor:
        return _from_bits(self.words, self.shape[1]) * self.scales[:, None]

    def run_dense(self, x: Tensor) -> Tensor:
        return super().run_dense(sign_through(x) if self.of_signs else x)

    def run(self, x: Tensor) -> Tensor:
        y, x, n = self._answers(x), x.contiguous(), x.numel() // self.shape[1]
        if n >= MANY and not self.of_signs:
            return self._dense(x)
        packed = self._addresses("words", "scales", "bias")
        kernel = signs.signs_times_signs if self.of_signs else signs.signs_times_vectors
        kernel(*packed, x.data_ptr(), y.data_ptr(), *self.shape, n, self.rectify)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}{', of signs' * self.of_signs}"


class SignConv(CompressedLayer):
    """A convolution of the signs of its inputs with filters of signs; what lies outside of a picture is 0, not a sign.

    Args:
        codes: (out, in, height, width), -1 or 1. scales: float32, (out,).
    """

    way = "signs"
    takes_rectifier = False
    words: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Conv2d, codes: Tensor, scales: Tensor) -> None:
        super().__init__(layer)
        self.stride, self.padding = _pair(layer.stride), _pair(layer.padding)
        words = signs.pack_filters(codes.cpu().numpy())
        self._hold("words", words.view(np.int64))
        self._hold("scales", F.pad(scales.detach().float().cpu(), (0, len(words) - self.shape[0])))
        self.bias = F.pad(self.bias, (0, len(words) - self.shape[0]))

    def weight(self) -> Tensor:
        n_out, n_in, height, width = self.shape
        rows = _from_bits(self.words[:n_out].reshape(-1, self.words.shape[3]), n_in)
        filters = rows.reshape(n_out, height, width, n_in).permute(0, 3, 1, 2)
        return filters * self.scales[:n_out, None, None, None]

    def run_dense(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return x.new_empty((len(x), self.shape[0], *self._sizes(x)))
        bias = self.bias[: self.shape[0]].to(x.dtype)
        return F.conv2d(sign_through(x), self.weight().to(x.dtype), bias, self.stride, self.padding)

    def run(self, x: Tensor) -> Tensor:
        _check_channels(self, x)
        x, (n_out, n_in), kernel, sizes = x.contiguous(), self.shape[:2], self.shape[2:], self._sizes(x)
        y = torch.empty(len(x), n_out, *sizes)
        signs.convolve_signs(
            *(*self._addresses("words", "scales", "bias"), x.data_ptr(), y.data_ptr(), len(x)),
            *((n_in, n_out), (*x.shape[2:], *sizes), kernel, self.stride, self.padding),
        )
        return y

    def _sizes(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the answers."""
        height, width = (
            (size + 2 * pad - kernel) // stride + 1
            for size, pad, kernel, stride in zip(x.shape[2:], self.padding, self.shape[2:], self.stride, strict=True)
        )
        if height < 1 or width < 1:
            raise SettingError(
                f"signs: pictures of {tuple(x.shape[2:])} are smaller than the filters, {self.shape[2:]}."
            )
        return height, width


def _check_channels(layer: CompressedLayer, x: Tensor) -> None:
    if x.dim() != 4 or x.shape[1] != layer.shape[1]:
        raise SettingError(
            f"{layer.way}: inputs must be (samples, {layer.shape[1]}, height, width), got shape {tuple(x.shape)}."
        )


def _pair(value: object) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple) else (value, value)
    return int(first), int(second)


def _from_groups(groups: Tensor, starts: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix that `kernels.sparse` packed."""
    values = groups[:, :64].contiguous().view(torch.float32)
    columns = groups[:, 64:].contiguous().view(torch.int16).long() & 0xFFFF
    per_group = columns.shape[1]
    height = sparse.GROUP // per_group
    rows = torch.repeat_interleave(torch.arange(len(starts) - 1, device=groups.device), starts.diff() * per_group)
    found = torch.zeros(len(starts) - 1, shape[1], height, device=groups.device)
    found.index_put_((rows, columns.reshape(-1)), values.reshape(-1, height), accumulate=True)
    return found.permute(0, 2, 1).reshape(-1, shape[1])[: shape[0]]


def _from_bits(words: Tensor, columns: int) -> Tensor:
    """The signs that `kernels.signs` packed, float32 (rows, columns)."""
    octets = words.view(torch.uint8).reshape(len(words), -1, 1)
    bits = octets >> torch.arange(8, dtype=torch.uint8, device=words.device) & 1
    return bits.reshape(len(words), -1)[:, :columns].float() * 2 - 1
