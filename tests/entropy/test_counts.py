"""Frequencies: exact integers, largest remainders, and a stored form that is short and refuses damage."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penjing.entropy import (
    BitWriter,
    ByteReader,
    ByteWriter,
    best_frequencies,
    count,
    entropy_bits,
    entropy_bits_per_symbol,
    quantize_counts,
    read_frequencies,
    write_frequencies,
)
from penjing.entropy.tables import write_numbers, write_support
from penjing.errors import ArtifactError, DataError, PenjingError, SettingError

HILL = [0, 1, 9, 40, 100, 60, 12, 2]

some_counts = st.lists(st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 10**7)), min_size=1, max_size=300)


def test_count() -> None:
    assert count(np.array([[3, 0], [3, 1]], dtype=np.uint8), 5).tolist() == [1, 1, 0, 2, 0]
    assert count([], 3).tolist() == [0, 0, 0]
    with pytest.raises(DataError, match=r"in 0\.\.2, got 0\.\.3"):
        count([0, 3], 3)
    with pytest.raises(DataError, match="integers"):
        count([0.5], 3)
    for alphabet in (0, -1, 65537):
        with pytest.raises(ArtifactError, match="alphabet"):
            count([], alphabet)


def test_quantize_golden() -> None:
    assert quantize_counts(HILL, 6).tolist() == [0, 1, 3, 11, 28, 17, 3, 1]
    assert quantize_counts([1, 1, 1], 2).tolist() == [2, 1, 1]
    assert quantize_counts([10**9, 1, 1, 1], 2).tolist() == [1, 1, 1, 1]
    assert quantize_counts([0, 5], 0).tolist() == [0, 1]


@given(some_counts.filter(any), st.integers(0, 24))
def test_quantized_counts_sum_and_stay_close(counts: list[int], total_bits: int) -> None:
    n_used = sum(value > 0 for value in counts)
    if n_used > 1 << total_bits:
        with pytest.raises(SettingError, match="take total_bits >="):
            quantize_counts(counts, total_bits)
        return
    freqs = quantize_counts(counts, total_bits)
    assert int(freqs.sum()) == 1 << total_bits
    assert [value > 0 for value in freqs.tolist()] == [value > 0 for value in counts]

    deserved = [Fraction(value << total_bits, sum(counts)) for value in counts]
    if all(value >= 1 or value == 0 for value in deserved):
        assert all(abs(freq - value) < 1 for freq, value in zip(freqs.tolist(), deserved, strict=True))


def test_quantize_refuses() -> None:
    for counts, total_bits in (([0, 0], 4), ([-1, 2], 4), ([], 4), ([1], 25), ([1], -1), ([1 << 38], 4)):
        with pytest.raises(SettingError):
            quantize_counts(counts, total_bits)


def test_entropy() -> None:
    assert entropy_bits([4, 2, 1, 1]) == 14.0
    assert entropy_bits_per_symbol([4, 2, 1, 1], [1, 1, 1, 1]) == 2.0
    assert entropy_bits([0, 7]) == 0.0
    assert entropy_bits_per_symbol([0, 0]) == 0.0
    assert entropy_bits([1, 1], [4, 0]) == math.inf


def test_frequencies_golden() -> None:
    writer = ByteWriter()
    write_frequencies(writer, [1, 2, 4, 8, 1], 4)
    assert writer.finish().hex() == "08182f80"
    freqs, total_bits = read_frequencies(ByteReader(writer.finish()), 5)
    assert (freqs.tolist(), total_bits) == ([1, 2, 4, 8, 1], 4)

    freqs, total_bits = read_frequencies(ByteReader(bytes.fromhex("d3c305e840")), 8)
    assert freqs.tolist() == [0, 10486, 41943, 167772, 513802, 262144, 41943, 10486]
    assert total_bits == 20
    assert best_frequencies(HILL).table.hex() == "d3c305e840"
    assert best_frequencies([0, 0, 7, 0]).table.hex() == "c2"


@given(some_counts.filter(any), st.integers(9, 24))
def test_frequencies_round_trip(counts: list[int], total_bits: int) -> None:
    freqs = quantize_counts(counts, total_bits)
    writer = ByteWriter()
    write_frequencies(writer, freqs, total_bits)
    reader = ByteReader(writer.finish())
    again, again_bits = read_frequencies(reader, len(counts))
    np.testing.assert_array_equal(again, freqs)
    assert (again_bits, reader.n_left) == (total_bits, 0)


@settings(max_examples=60, deadline=None)
@given(some_counts)
@example([0] * 65535 + [1])
@example([1] * 65536)
def test_best_frequencies_are_read_back(counts: list[int]) -> None:
    best = best_frequencies(counts)
    reader = ByteReader(best.table)
    freqs, total_bits = read_frequencies(reader, len(counts))
    np.testing.assert_array_equal(freqs, best.freqs)
    assert (total_bits, reader.n_left) == (best.total_bits, 0)
    assert int(freqs.sum()) == 1 << total_bits
    assert entropy_bits(counts, freqs) < math.inf


@pytest.mark.parametrize(("n", "alphabet", "most_extra_bytes"), [(600, 5, 5), (600, 16, 8), (20_000, 16, 13)])
def test_best_frequencies_cost_little(n: int, alphabet: int, most_extra_bytes: float) -> None:
    rng = np.random.default_rng(n + alphabet)
    codes = np.clip(np.rint(rng.standard_normal(n) * alphabet / 6) + alphabet // 2, 0, alphabet - 1)
    counts = count(codes.astype(np.int64), alphabet)
    best = best_frequencies(counts)
    assert len(best.table) + (entropy_bits(counts, best.freqs) - entropy_bits(counts)) / 8 < most_extra_bytes


def test_best_frequencies_beat_every_plain_precision() -> None:
    best = best_frequencies(HILL)
    for total_bits in range(3, 16):
        freqs = quantize_counts(HILL, total_bits)
        writer = ByteWriter()
        write_frequencies(writer, freqs, total_bits)
        assert len(best.table) + entropy_bits(HILL, best.freqs) / 8 < len(writer) + entropy_bits(HILL, freqs) / 8 + 1


def test_write_refuses_other_sums() -> None:
    for freqs, total_bits in (([1, 2], 2), ([3, -1], 1), ([1 << 25], 25)):
        with pytest.raises(SettingError, match="sum"):
            write_frequencies(ByteWriter(), freqs, total_bits)
    with pytest.raises(ArtifactError, match="alphabet"):
        write_frequencies(ByteWriter(), [], 0)


def _plain_table(total_bits: int, values: list[int], alphabet: int) -> bytes:
    bits = BitWriter()
    bits.field(0, 1)
    write_support(bits, np.arange(alphabet), alphabet)
    bits.field(total_bits, 5)
    write_numbers(bits, np.array(values, dtype=np.int64) - 1)
    return bits.finish()


def test_read_refuses_sums_that_do_not_add_up() -> None:
    assert read_frequencies(ByteReader(_plain_table(3, [1, 6], 3)), 3)[0].tolist() == [1, 6, 1]
    for total_bits, values in ((3, [1, 7]), (3, [9, 9]), (25, [1, 1])):
        with pytest.raises(ArtifactError, match="sum to more"):
            read_frequencies(ByteReader(_plain_table(total_bits, values, 3)), 3)


def test_read_refuses_roots_that_are_too_large() -> None:
    bits = BitWriter()
    bits.field(1, 1)
    write_support(bits, np.arange(2), 2)
    write_numbers(bits, np.array([1, 1 << 14]))
    with pytest.raises(ArtifactError, match="root"):
        read_frequencies(ByteReader(bits.finish()), 2)


def test_read_refuses_alphabets() -> None:
    for alphabet in (0, -3, 65537, 1 << 40):
        with pytest.raises(ArtifactError, match="alphabet"):
            read_frequencies(ByteReader(b"\0" * 100), alphabet)


def test_read_refuses_supports_outside_of_the_alphabet() -> None:
    run, gaps, none, unknown = BitWriter(), BitWriter(), BitWriter(), BitWriter()
    for bits, form in ((run, 1), (gaps, 2), (none, 0), (unknown, 3)):
        bits.field(1, 1)  # roots
        bits.field(1, 1)  # not all symbols
        bits.field(form, 2)
    run.fields([2, 6], 3)
    gaps.field(0, 3)
    gaps.exp_golomb(0, 0)
    gaps.exp_golomb(1 << 60, 0)
    none.fields([0] * 6, 1)
    for bits in (run, gaps, none, unknown):
        with pytest.raises(ArtifactError, match=r"occurs|unknown form"):
            read_frequencies(ByteReader(bits.finish() + b"\0" * 8), 6)


def test_damaged_tables_are_refused_or_sound() -> None:
    rng = np.random.default_rng(5)
    table = bytearray(best_frequencies(HILL).table + b"\x55\x01")
    for _ in range(4000):
        damaged = bytearray(table)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        alphabet = int(rng.choice([1, 2, 8, 16, 300]))
        try:
            freqs, total_bits = read_frequencies(ByteReader(damaged[: rng.integers(len(damaged) + 1)]), alphabet)
        except PenjingError:
            continue
        assert freqs.shape == (alphabet,)
        assert int(freqs.sum()) == 1 << total_bits
