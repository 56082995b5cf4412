"""Matrices and filters of signs: 64 weights a word.

With inputs that are signs too, a product is 1 where bits agree, so a sum of n products is n - 2 popcount(a xor b): exact, since
it is counted. With inputs that are numbers, the bits of a row choose which of them are added: sum of chosen minus sum of the
others is 2 * chosen - all.

A bit is 1 where the value is >= 0, as sign(0) = +1. Bits of a row are in the order of its columns; those of a filter are its
input channels, a word sequence for each place of the filter. Words are filled up with zeros, in weights and inputs alike, which
agree and are not counted in n.

Source: Rastegari et al. 2016 (XNOR-Net), arXiv:1603.05279, section 3.2.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from penjing.errors import DataError
from penjing.kernels import llvm

WORD = 64
FILTERS = 4
"""Filters that are computed together."""


def pack(signs: NDArray[Any]) -> NDArray[np.uint64]:
    """The words of a matrix of -1 and 1: (rows, columns) -> (rows, ceil(columns / 64)).

    Raises: DataError: other numbers, or no matrix.
    """
    if signs.ndim != 2 or not bool((np.abs(signs) == 1).all()):
        raise DataError(f"kernels.signs: a matrix of -1 and 1 is needed, got shape {signs.shape}.")
    rows, columns = signs.shape
    bits = np.zeros((rows, -(-columns // WORD) * WORD), np.uint8)
    bits[:, :columns] = signs > 0
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint64)


def unpack(words: NDArray[np.uint64], columns: int) -> NDArray[np.int8]:
    """The signs again, (rows, columns)."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")[:, :columns]
    return (bits.astype(np.int8) * 2 - 1).astype(np.int8)


def pack_filters(signs: NDArray[Any]) -> NDArray[np.uint64]:
    """The words of filters of -1 and 1: (out, in, height, width) -> (out up to fours, height, width, ceil(in / 64)).

    Raises: DataError: as `pack`.
    """
    n_out, n_in, height, width = signs.shape
    rows = pack(np.ascontiguousarray(signs.transpose(0, 2, 3, 1)).reshape(-1, n_in))
    filters = np.zeros((-(-n_out // FILTERS) * FILTERS, height, width, rows.shape[1]), np.uint64)
    filters[:n_out] = rows.reshape(n_out, height, width, -1)
    return filters


def unpack_filters(words: NDArray[np.uint64], n_out: int, n_in: int) -> NDArray[np.int8]:
    """The signs again, (out, in, height, width)."""
    _, height, width, n_words = words.shape
    rows = unpack(words[:n_out].reshape(-1, n_words), n_in)
    return np.ascontiguousarray(rows.reshape(n_out, height, width, n_in).transpose(0, 3, 1, 2))


@intrinsic
def _ones(typing_context: Any, word: Any) -> Any:
    """uint64: how many bits of a word are 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return llvm.call(builder, "llvm.ctpop.i64", llvm.INT64, [arguments[0]])

    return types.uint64(types.uint64), generate


@intrinsic
def _sign_bits(typing_context: Any, x: Any, n: Any, out: Any) -> Any:
    """The bits of 64 n numbers, in order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, n, out = arguments
        with cgutils.for_range(builder, builder.mul(n, llvm.INT64(4))) as loop:
            values = llvm.load(
                builder, builder.add(x, builder.mul(loop.index, llvm.INT64(64))), llvm.vector(llvm.FLOAT, 16)
            )
            bits = builder.fcmp_ordered(">=", values, llvm.same(0.0, llvm.FLOAT, 16))
            address = builder.add(out, builder.mul(loop.index, llvm.INT64(2)))
            llvm.store(builder, address, builder.bitcast(bits, llvm.INT16))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def _chosen(typing_context: Any, words: Any, x: Any, n: Any) -> Any:
    """float32: the sum of those of 64 n numbers whose bits are 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, x, n = arguments
        sums = llvm.Sums(builder, 4, 16)
        with cgutils.for_range(builder, n) as loop:
            word = builder.add(words, builder.mul(loop.index, llvm.INT64(8)))
            place = builder.add(x, builder.mul(loop.index, llvm.INT64(4 * WORD)))
            for k in range(4):
                half = llvm.load(builder, llvm.add(builder, word, 2 * k), llvm.INT16)
                bits = builder.bitcast(half, llvm.vector(ir.IntType(1), 16))
                values = llvm.load(builder, llvm.add(builder, place, 64 * k), llvm.vector(llvm.FLOAT, 16))
                sums.update(k, lambda total, b=bits, v=values: builder.select(b, builder.fadd(total, v), total))  # type: ignore[misc]
        return llvm.lanes_added(builder, sums.together())

    return types.float32(types.intp, types.intp, types.intp), generate


@njit(nogil=True, cache=True)
def _packed(x: int, n_columns: int, n: int) -> Any:
    """The words of the signs of n vectors, (n, ceil(columns / 64))."""
    n_words = (n_columns + 63) // 64
    words = np.zeros((n, n_words), np.uint64)
    values = carray(llvm.pointer(x), (n, n_columns), np.float32)
    for s in range(n):
        _sign_bits(x + 4 * s * n_columns, n_columns // 64, words[s].ctypes.data)
        for c in range(n_columns // 64 * 64, n_columns):
            if values[s, c] >= 0:
                words[s, c // 64] |= np.uint64(1) << np.uint64(c % 64)
    return words


@njit(nogil=True, cache=True)
def signs_times_signs(
    words: int, scales: int, bias: int, x: int, y: int, n_rows: int, n_columns: int, n: int, rectify: bool
) -> None:
    """y[s, r] = scale[r] * sum_c W[r, c] sign(x[s, c]) + b[r]; the sum is exact.

    Args:
        words: address of what `pack` gives. scales, bias: of float32 (rows,). x: of float32 (n, columns), of which only signs
            matter. y: of float32 (n, rows). rectify: what is below 0 becomes 0.
    """
    inputs = _packed(x, n_columns, n)
    n_words = inputs.shape[1]
    weights = carray(llvm.pointer(words), (n_rows, n_words), np.uint64)
    factors = carray(llvm.pointer(scales), (n_rows,), np.float32)
    added = carray(llvm.pointer(bias), (n_rows,), np.float32)
    out = carray(llvm.pointer(y), (n, n_rows), np.float32)
    for r in range(n_rows):
        for s in range(n):
            differ = np.uint64(0)
            for k in range(n_words):
                differ += _ones(weights[r, k] ^ inputs[s, k])
            total = factors[r] * np.float32(n_columns - 2 * np.int64(differ)) + added[r]
            out[s, r] = np.float32(0) if rectify and total < 0 else total


@njit(nogil=True, cache=True)
def signs_times_vectors(
    words: int, scales: int, bias: int, x: int, y: int, n_rows: int, n_columns: int, n: int, rectify: bool
) -> None:
    """y[s, r] = scale[r] * sum_c W[r, c] x[s, c] + b[r] for numbers x; addresses as in `signs_times_signs`."""
    n_words = (n_columns + 63) // 64
    values = carray(llvm.pointer(x), (n, n_columns), np.float32)
    filled = np.zeros((n, 64 * n_words if n_columns % 64 else 0), np.float32)
    if n_columns % 64:
        filled[:, :n_columns] = values
        x = filled.ctypes.data
    factors = carray(llvm.pointer(scales), (n_rows,), np.float32)
    added = carray(llvm.pointer(bias), (n_rows,), np.float32)
    out = carray(llvm.pointer(y), (n, n_rows), np.float32)
    for s in range(n):
        total = np.float64(0)
        for c in range(n_columns):
            total += values[s, c]
        for r in range(n_rows):
            chosen = _chosen(words + 8 * n_words * r, x + 256 * n_words * s, n_words)
            found = factors[r] * np.float32(2 * np.float64(chosen) - total) + added[r]
            out[s, r] = np.float32(0) if rectify and found < 0 else found


@intrinsic
def _tile(
    typing_context: Any,
    inputs: Any,
    masks: Any,
    step: Any,
    filters: Any,
    n: Any,
    factors: Any,
    bias: Any,
    counts: Any,
    out: Any,
    out_step: Any,
) -> Any:
    """Four filters at sixteen places, float32 (4, 16):

    factor[o] (counts[p] - 2 sum_k ones((inputs[k, p] ^ filters[o, k]) & masks[k, p])) + bias[o],   k over n words of a filter

    Rows of inputs and masks are `step` bytes apart, those of the result `out_step`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        inputs, masks, step, filters, n, factors, bias, counts, out, out_step = arguments
        words, floats = llvm.vector(llvm.INT64, 8), llvm.vector(llvm.FLOAT, 8)
        differ = [[cgutils.alloca_once_value(builder, llvm.same(0, llvm.INT64, 8)) for _ in range(2)] for _ in range(4)]
        with cgutils.for_range(builder, n) as loop:
            row = builder.mul(loop.index, step)
            for part in range(2):
                place = llvm.add(builder, row, 64 * part)
                here = llvm.load(builder, builder.add(inputs, place), words)
                mask = llvm.load(builder, builder.add(masks, place), words)
                for o in range(4):
                    index = builder.add(builder.mul(n, llvm.INT64(o)), loop.index)
                    word = llvm.load(builder, builder.add(filters, builder.mul(index, llvm.INT64(8))), llvm.INT64)
                    others = builder.and_(builder.xor(here, llvm.spread(builder, word, 8)), mask)
                    found = llvm.call(builder, "llvm.ctpop.v8i64", words, [others])
                    builder.store(builder.add(builder.load(differ[o][part]), found), differ[o][part])
        for part in range(2):
            count = llvm.load(builder, llvm.add(builder, counts, 64 * part), words)
            for o in range(4):
                factor = llvm.load(builder, llvm.add(builder, factors, 4 * o), llvm.FLOAT)
                twice = builder.shl(builder.load(differ[o][part]), llvm.same(1, llvm.INT64, 8))
                sums = builder.sitofp(builder.sub(count, twice), floats)
                added = llvm.load(builder, llvm.add(builder, bias, 4 * o), llvm.FLOAT)
                scaled = builder.fadd(
                    builder.fmul(sums, llvm.spread(builder, factor, 8)), llvm.spread(builder, added, 8)
                )
                row = builder.add(out, builder.mul(out_step, llvm.INT64(o)))
                llvm.store(builder, llvm.add(builder, row, 32 * part), scaled)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 10), generate


@njit(nogil=True, cache=True)
def _packed_pictures(x: int, n_in: int, n_places: int) -> Any:
    """The words of the signs of a picture's channels at every place, (ceil(channels / 64), places)."""
    words = np.zeros(((n_in + 63) // 64, n_places), np.uint64)
    values = carray(llvm.pointer(x), (n_in, n_places), np.float32)
    for c in range(n_in):
        own, bit, out = values[c], np.uint64(1) << np.uint64(c % 64), words[c // 64]
        for p in range(n_places):
            out[p] |= bit if own[p] >= 0 else np.uint64(0)
    return words


@njit(nogil=True, cache=True)
def _inside(size: int, out_size: int, stride: int, shift: int) -> Any:
    """The first j, and the last one and 1, of 0 ... out_size - 1 for which j * stride + shift lies in 0 ... size - 1."""
    first = max(0, -(shift // stride))
    last = min(out_size, (size - 1 - shift) // stride + 1)
    return min(first, max(last, 0)), max(last, 0)


@njit(nogil=True, cache=True)
def convolve_signs(
    words: int,
    scales: int,
    bias: int,
    x: int,
    y: int,
    n: int,
    channels: Any,
    sizes: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
) -> None:
    """scale * (filters of signs over the signs of pictures) + b; places outside of a picture count 0, and sums are exact.

    Args:
        words: address of what `pack_filters` gives. scales, bias: of float32, for as many filters as are there. x: of float32
            (n, in, height, width). y: of float32 (n, out, height', width').
        channels: in, out. sizes: height, width, height', width'.
    """
    n_in, n_out = channels
    height, width, out_height, out_width = sizes
    n_words, n_out_places = (n_in + 63) // 64, out_height * out_width
    n_terms, n_blocks = kernel[0] * kernel[1] * n_words, (n_out_places + 15) // 16
    out = carray(llvm.pointer(y), (n, n_out, n_out_places), np.float32)
    inputs = np.zeros((n_terms, 16 * n_blocks), np.uint64)
    masks = np.zeros((n_terms, 16 * n_blocks), np.uint64)
    counts = np.zeros(16 * n_blocks, np.int64)
    tile = np.empty((4, 16), np.float32)
    for s in range(n):
        picture = _packed_pictures(x + 4 * s * n_in * height * width, n_in, height * width)
        for u in range(kernel[0]):
            for v in range(kernel[1]):
                first, last = _inside(width, out_width, stride[1], v - padding[1])
                for i in range(out_height):
                    row = i * stride[0] - padding[0] + u
                    if row < 0 or row >= height:
                        continue
                    source, place = row * width + v - padding[1], i * out_width
                    for k in range(n_words):
                        term = (u * kernel[1] + v) * n_words + k
                        own, mask, whole = inputs[term], masks[term], picture[k]
                        for j in range(first, last):
                            own[place + j] = whole[source + j * stride[1]]
                            mask[place + j] = np.uint64(0xFFFFFFFFFFFFFFFF)
                    if s == 0:
                        counts[place + first : place + last] += n_in
        for b in range(n_blocks):
            places = min(16, n_out_places - 16 * b)
            for o in range(0, n_out, 4):
                whole_tile = places == 16 and o + 4 <= n_out
                place = y + 4 * ((s * n_out + o) * n_out_places + 16 * b)
                _tile(
                    inputs.ctypes.data + 128 * b,
                    masks.ctypes.data + 128 * b,
                    128 * n_blocks,
                    words + 8 * n_terms * o,
                    n_terms,
                    scales + 4 * o,
                    bias + 4 * o,
                    counts.ctypes.data + 128 * b,
                    place if whole_tile else tile.ctypes.data,
                    4 * n_out_places if whole_tile else 64,
                )
                if not whole_tile:
                    for q in range(min(4, n_out - o)):
                        for p in range(places):
                            out[s, o + q, 16 * b + p] = tile[q, p]
