"""Huffman: optimal, canonical, within one bit of the entropy, exact bytes, and fast to read."""

import itertools
import math
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.entropy import (
    ByteReader,
    ByteWriter,
    canonical_codes,
    code_lengths,
    count,
    entropy_bits,
    huffman,
    payload_bits,
    read_lengths,
    write_lengths,
)
from penjing.errors import ArtifactError, DataError, PenjingError, SettingError

HILL = [0, 1, 9, 40, 100, 60, 12, 2]
SYMBOLS = [4, 4, 5, 3, 4, 2, 1, 7, 6, 4, 5, 5]


def streams(most_symbols: int = 400) -> st.SearchStrategy[tuple[int, list[int]]]:
    """An alphabet of 1..300 and symbols of it: all alike, few kinds, or any."""
    return st.integers(1, 300).flatmap(
        lambda alphabet: st.tuples(
            st.just(alphabet),
            st.one_of(
                st.lists(st.integers(0, alphabet - 1), max_size=most_symbols),
                st.lists(st.integers(0, min(2, alphabet - 1)), max_size=most_symbols),
                st.builds(lambda symbol, n: [symbol] * n, st.integers(0, alphabet - 1), st.integers(0, most_symbols)),
            ),
        )
    )


def _gaussian_codes(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(np.rint(rng.standard_normal(n) * 1.9) + 8, 0, 15).astype(np.int32)


def test_golden() -> None:
    lengths = code_lengths(HILL)
    assert lengths.tolist() == [0, 6, 5, 3, 1, 2, 4, 6]
    assert canonical_codes(lengths).tolist() == [0, 0b111110, 0b11110, 0b110, 0b0, 0b10, 0b1110, 0b111111]
    assert huffman.encode(SYMBOLS, lengths).hex() == "2cf7dff280"
    assert huffman.decode(bytes.fromhex("2cf7dff280"), len(SYMBOLS), lengths).tolist() == SYMBOLS
    writer = ByteWriter()
    write_lengths(writer, lengths)
    assert writer.finish().hex() == "a787620580"
    np.testing.assert_array_equal(read_lengths(ByteReader(writer.finish()), 8), lengths)


@settings(deadline=None)
@given(streams())
def test_lossless(stream: tuple[int, list[int]]) -> None:
    alphabet, symbols = stream
    counts = count(symbols, alphabet)
    lengths = code_lengths(counts)
    data = huffman.encode(symbols, lengths)
    assert len(data) == math.ceil(payload_bits(counts, lengths) / 8)
    decoded = huffman.decode(data, len(symbols), lengths)
    assert decoded.dtype == np.int32
    assert decoded.tolist() == symbols
    if symbols:
        writer = ByteWriter()
        write_lengths(writer, lengths)
        reader = ByteReader(writer.finish())
        np.testing.assert_array_equal(read_lengths(reader, alphabet), lengths)
        assert reader.n_left == 0


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=100).filter(lambda c: sum(v > 0 for v in c) > 1))
def test_average_length_is_within_one_bit_of_the_entropy(counts: list[int]) -> None:
    # The law holds where the limit does not bind: the deepest code of total T has at most log_phi(T) bits.
    unlimited = [value >> 14 for value in counts] if sum(counts) > 900 else counts
    if sum(value > 0 for value in unlimited) < 2:
        return
    total, least = sum(unlimited), entropy_bits(unlimited)
    n_bits = payload_bits(unlimited, code_lengths(unlimited))
    assert least - 1e-6 <= n_bits < least + total


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(3, 4))
def test_optimal_among_all_codes_under_the_limit(counts: list[int], max_length: int) -> None:
    used = [value for value in counts if value]
    if len(used) < 2:
        return
    best = min(
        sum(value * length for value, length in zip(used, lengths, strict=True))
        for lengths in itertools.product(range(1, max_length + 1), repeat=len(used))
        if sum(2.0**-length for length in lengths) <= 1
    )
    assert payload_bits(counts, code_lengths(counts, max_length)) == best


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=300), st.integers(9, 15))
def test_complete_limited_and_canonical(counts: list[int], max_length: int) -> None:
    lengths = code_lengths(counts, max_length).astype(int)
    used = np.flatnonzero(lengths)
    assert used.tolist() == np.flatnonzero(counts).tolist()
    if used.size < 2:
        assert lengths.sum() == used.size
        return
    assert lengths.max() <= max_length
    assert sum(2.0 ** -lengths[used]) == 1.0
    codes = canonical_codes(lengths)
    in_order = sorted(used.tolist(), key=lambda symbol: (lengths[symbol], symbol))
    left_aligned = [int(codes[symbol]) << (15 - lengths[symbol]) for symbol in in_order]
    assert left_aligned == sorted(set(left_aligned))
    rarer_is_longer = sorted(used.tolist(), key=lambda symbol: (counts[symbol], -lengths[symbol]))
    assert all(lengths[a] >= lengths[b] for a, b in itertools.pairwise(rarer_is_longer))


def test_fibonacci_counts_reach_the_limit_and_decode() -> None:
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    lengths = code_lengths(counts)
    assert lengths.max() == 15
    symbols = np.random.default_rng(0).integers(0, 30, 20_000)
    np.testing.assert_array_equal(huffman.decode(huffman.encode(symbols, lengths), symbols.size, lengths), symbols)


def test_full_alphabet_of_15_bits() -> None:
    lengths = code_lengths(np.ones(1 << 15, dtype=np.int64))
    assert set(lengths.tolist()) == {15}
    symbols = np.random.default_rng(0).permutation(1 << 15)
    np.testing.assert_array_equal(huffman.decode(huffman.encode(symbols, lengths), symbols.size, lengths), symbols)
    with pytest.raises(SettingError, match="32769 symbols occur"):
        code_lengths(np.ones((1 << 15) + 1, dtype=np.int64))


def test_one_symbol_costs_no_payload() -> None:
    lengths = code_lengths([0, 0, 9])
    assert lengths.tolist() == [0, 0, 1]
    assert huffman.encode([2] * 1000, lengths) == b""
    assert huffman.decode(b"", 1000, lengths).tolist() == [2] * 1000
    with pytest.raises(ArtifactError, match="0 bytes hold"):
        huffman.decode(b"\0", 1000, lengths)


def test_no_symbols() -> None:
    lengths = code_lengths([0, 0])
    assert huffman.encode([], lengths) == b""
    assert huffman.decode(b"", 0, lengths).size == 0
    with pytest.raises(ArtifactError, match="cannot hold 1 symbols"):
        huffman.decode(b"", 1, lengths)


def test_settings_and_data_are_checked() -> None:
    for max_length in (0, 16):
        with pytest.raises(SettingError, match="max_length"):
            code_lengths([1, 2], max_length)
    with pytest.raises(SettingError, match="5 symbols occur"):
        code_lengths([1] * 5, 2)
    with pytest.raises(DataError, match=r"0\.\.1, got 0\.\.2"):
        huffman.encode([0, 2], [1, 1])
    with pytest.raises(DataError, match="symbol 1 occurs, but has no code"):
        huffman.encode([0, 1], [1, 0, 1])


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 2], [2, 0], [1, 16], [], [1, 2, 3], [-1, 1]])
def test_codes_that_are_not_complete_are_refused(lengths: list[int]) -> None:
    for use in (
        lambda: huffman.decode(b"\0", 1, lengths),
        lambda: huffman.encode([0], lengths),
        lambda: canonical_codes(lengths),
        lambda: write_lengths(ByteWriter(), lengths),
    ):
        with pytest.raises(ArtifactError):
            use()


def test_cut_off_and_overlong_data_are_refused() -> None:
    lengths = code_lengths(HILL)
    data = huffman.encode(SYMBOLS, lengths)
    for size in range(len(data)):
        with pytest.raises(ArtifactError, match="cut off"):
            huffman.decode(data[:size], len(SYMBOLS), lengths)
    with pytest.raises(ArtifactError, match="data is left"):
        huffman.decode(data + b"\0", len(SYMBOLS), lengths)
    with pytest.raises(ArtifactError, match="data is left"):
        huffman.decode(data[:-1] + bytes([data[-1] | 1]), len(SYMBOLS), lengths)
    for n in (-1, 10**15):
        with pytest.raises(ArtifactError, match="cannot hold"):
            huffman.decode(data, n, lengths)


def test_damaged_streams_are_refused_or_in_range() -> None:
    rng = np.random.default_rng(3)
    symbols = _gaussian_codes(200, 3)
    lengths = code_lengths(count(symbols, 16))
    writer = ByteWriter()
    write_lengths(writer, lengths)
    table = writer.finish()
    intact = table + huffman.encode(symbols, lengths)
    n_read = 0
    for _ in range(4000):
        damaged = bytearray(intact)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        reader = ByteReader(damaged[: len(damaged) - int(rng.integers(3)) * int(rng.integers(20))])
        try:
            read = read_lengths(reader, 16)
            decoded = huffman.decode(reader.raw(reader.n_left), int(rng.integers(190, 210)), read)
        except PenjingError:
            continue
        n_read += 1
        assert (read[decoded] > 0).all()
    assert n_read > 0


@pytest.mark.skipif("PENJING_SKIP_SPEED" in os.environ, reason="PENJING_SKIP_SPEED is set: speed is not tested")
def test_decodes_twenty_million_symbols_per_second() -> None:
    symbols = _gaussian_codes(2_000_000, 0)
    counts = count(symbols, 16)
    lengths = code_lengths(counts)
    assert 2.7 < payload_bits(counts, lengths) / symbols.size < 3.3
    data = huffman.encode(symbols, lengths)
    np.testing.assert_array_equal(huffman.decode(data, symbols.size, lengths), symbols)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        huffman.decode(data, symbols.size, lengths)
        seconds.append(time.perf_counter() - start)
    assert symbols.size / min(seconds) >= 20e6
