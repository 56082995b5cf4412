"""Range coding: lossless, as short as the model allows, exact bytes, and safe on damaged streams."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.entropy import RangeDecoder, RangeEncoder, count, entropy_bits, quantize_counts
from penjing.errors import ArtifactError, DataError, PenjingError, SettingError

HILL = [0, 1, 9, 40, 100, 60, 12, 2]
SYMBOLS = [4, 4, 5, 3, 4, 2, 1, 7, 6, 4, 5, 5]


def _encode(*parts: tuple[object, object]) -> bytes:
    encoder = RangeEncoder()
    for symbols, freqs in parts:
        encoder.encode(symbols, freqs)  # type: ignore[arg-type]
    return encoder.finish()


@st.composite
def parts(draw: st.DrawFn) -> tuple[list[int], np.ndarray]:
    """Symbols of an alphabet of 1..300 and a model of it, perhaps highly skewed, perhaps not their own."""
    alphabet = draw(st.integers(1, 300))
    kinds = draw(st.sampled_from([1, 2, 3, alphabet]))
    symbols = draw(st.lists(st.integers(0, min(kinds, alphabet) - 1), max_size=300))
    counts = count(symbols, alphabet) ** draw(st.integers(1, 3))
    counts[draw(st.integers(0, alphabet - 1))] += draw(st.integers(1, 10**6))
    return symbols, quantize_counts(counts, draw(st.integers(9, 24)))


def test_golden() -> None:
    freqs = quantize_counts(HILL, 6)
    encoder = RangeEncoder()
    encoder.encode(SYMBOLS, freqs)
    assert encoder.finish().hex() == "7886926805"
    encoder.encode([0, 1, 1, 0, 0, 2], [2, 1, 1])
    encoder.encode([3] * 9, [0, 0, 0, 16])
    ramp = quantize_counts(np.arange(1, 41), 10)
    encoder.encode(np.arange(40), ramp)
    data = bytes.fromhex("788692681a6e3e02312c189e7178840de44e2c681416a3740f27c4873222a2057fd3")
    assert encoder.finish() == data

    decoder = RangeDecoder(data)
    assert decoder.decode(len(SYMBOLS), freqs).tolist() == SYMBOLS
    assert decoder.decode(6, [2, 1, 1]).tolist() == [0, 1, 1, 0, 0, 2]
    assert decoder.decode(9, [0, 0, 0, 16]).tolist() == [3] * 9
    assert decoder.decode(40, ramp).tolist() == list(range(40))


@settings(deadline=None)
@given(st.lists(parts(), max_size=4))
def test_lossless_over_many_models_in_one_stream(coded: list[tuple[list[int], np.ndarray]]) -> None:
    data = _encode(*coded)
    decoder = RangeDecoder(data)
    for symbols, freqs in coded:
        decoded = decoder.decode(len(symbols), freqs)
        assert decoded.dtype == np.int32
        assert decoded.tolist() == symbols
    ideal = sum(entropy_bits(count(symbols, len(freqs)), freqs) for symbols, freqs in coded)
    n_symbols = sum(len(symbols) for symbols, _ in coded)
    assert len(data) <= ideal / 8 + 1 + 0.005 * n_symbols / 8


@settings(deadline=None)
@given(parts())
def test_no_byte_can_be_dropped(coded: tuple[list[int], np.ndarray]) -> None:
    symbols, freqs = coded
    data = _encode(coded)
    if not data:
        return
    assert data[-1] != 0
    with contextlib.suppress(ArtifactError):
        assert RangeDecoder(data[:-1]).decode(len(symbols), freqs).tolist() != symbols


def test_carries_run_through_long_stretches() -> None:
    # A rare last symbol after many first ones makes the lower end creep up to a border of words.
    rng = np.random.default_rng(1)
    freqs = [1, (1 << 24) - 2, 1]
    for _ in range(300):
        symbols = rng.choice(3, size=int(rng.integers(1, 60)), p=[0.3, 0.4, 0.3])
        assert RangeDecoder(_encode((symbols, freqs))).decode(symbols.size, freqs).tolist() == symbols.tolist()


def test_certain_symbols_cost_nothing() -> None:
    assert _encode() == b""
    assert _encode(([2] * 1000, [0, 0, 8]), ([], [1, 1]), ([0] * 5, [1])) == b""
    decoder = RangeDecoder(b"")
    assert decoder.decode(1000, [0, 0, 8]).tolist() == [2] * 1000
    assert decoder.decode(0, [1, 1]).tolist() == []


@pytest.mark.parametrize("n", [100_000, 1_000_000])
@pytest.mark.parametrize("kind", ["hill", "skewed", "flat", "large"])
def test_payload_is_within_five_thousandths_of_a_bit_per_symbol(n: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    weights = {
        "hill": np.exp(-0.5 * ((np.arange(16) - 8) / 2.2) ** 2),
        "skewed": np.array([0.999, 0.0005, 0.0005]),
        "flat": np.ones(32),
        "large": np.exp(-np.abs(np.arange(300) - 150) / 20),
    }[kind]
    symbols = rng.choice(weights.size, size=n, p=weights / weights.sum())
    counts = count(symbols, weights.size)
    freqs = quantize_counts(counts, 15)
    data = _encode((symbols, freqs))
    np.testing.assert_array_equal(RangeDecoder(data).decode(n, freqs), symbols)
    assert (8 * len(data) - entropy_bits(counts, freqs)) / n < 0.005


def test_short_streams_waste_less_than_a_byte() -> None:
    rng = np.random.default_rng(7)
    freqs = quantize_counts(np.exp(-0.5 * ((np.arange(16) - 8) / 2.2) ** 2) * 1e6, 12)
    wasted = []
    for _ in range(200):
        symbols = rng.choice(16, size=600, p=freqs / freqs.sum())
        wasted.append(len(_encode((symbols, freqs))) - entropy_bits(count(symbols, 16), freqs) / 8)
    assert max(wasted) < 1.1
    assert np.mean(wasted) < 0.6


def test_what_cannot_be_coded_is_refused() -> None:
    encoder = RangeEncoder()
    with pytest.raises(DataError, match="symbol 1 occurs, but its frequency is 0"):
        encoder.encode([0, 1], [1, 0, 1])
    with pytest.raises(DataError, match="symbol 1 occurs"):
        encoder.encode([0, 1], [4, 0])
    for symbols in ([3], [-1], [0.5]):
        with pytest.raises(DataError, match=r"integers in 0\.\.2"):
            encoder.encode(symbols, [1, 2, 1])
    for freqs in ([1, 2], [], [0, 0], [5, -1], [1 << 25]):
        with pytest.raises(SettingError, match="power of 2"):
            encoder.encode([0], freqs)
        with pytest.raises(SettingError, match="power of 2"):
            RangeDecoder(b"abc").decode(1, freqs)
    assert encoder.finish() == b""


def test_forged_numbers_of_symbols_are_refused() -> None:
    for n in (-1, 10**18):
        for freqs in ([1], [1, 2, 1]):
            with pytest.raises(ArtifactError, match=r"in 0\.\.2\*\*31"):
                RangeDecoder(b"abcdef").decode(n, freqs)


def test_damaged_streams_are_refused_or_in_range() -> None:
    rng = np.random.default_rng(11)
    freqs, other = quantize_counts(HILL, 8), quantize_counts([3, 0, 1, 900], 20)
    symbols = rng.choice(8, size=120, p=freqs / freqs.sum())
    intact = _encode((symbols, freqs), ([3] * 50 + [2, 0], other))
    for _ in range(4000):
        damaged = bytearray(intact)
        for _ in range(rng.integers(0, 4)):
            damaged[rng.integers(len(damaged))] = int(rng.integers(256))
        decoder = RangeDecoder(damaged[: rng.integers(len(damaged) + 1)])
        try:
            first, second = decoder.decode(120, freqs), decoder.decode(52, other)
        except PenjingError:
            continue
        assert (freqs[first] > 0).all()
        assert (other[second] > 0).all()


@given(st.binary(max_size=40))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    freqs = [1, 0, (1 << 24) - 3, 2]
    try:
        decoded = RangeDecoder(data).decode(500, freqs)
    except ArtifactError:
        return
    assert set(decoded.tolist()) <= {0, 2, 3}


def test_symbols_at_the_lower_end_need_no_bytes() -> None:
    assert _encode(([0] * 20_000, [1, 1])) == b""
    assert RangeDecoder(b"").decode(20_000, [1, 1]).tolist() == [0] * 20_000
    data = _encode(([1, 0, 1] + [0] * 20_000, [4, 4]))
    assert len(data) < 8
    assert RangeDecoder(data).decode(20_003, [4, 4]).tolist() == [1, 0, 1] + [0] * 20_000


def test_more_symbols_than_one_part_are_decoded_in_order() -> None:
    symbols = np.random.default_rng(2).integers(0, 2, (1 << 20) + 3)
    np.testing.assert_array_equal(RangeDecoder(_encode((symbols, [1, 1]))).decode(symbols.size, [1, 1]), symbols)


def test_model_is_the_frequencies_exactly() -> None:
    # n times one symbol costs n * -log2(frequency / sum) bits and the coder's own 1.3e-4 each; the last symbol makes
    # sure that all of them are needed.
    freqs, n = [1, 2, 5, 1016], 20_000
    for symbol, freq in enumerate(freqs[:3]):
        n_bits = 8 * len(_encode(([symbol] * n + [3], freqs)))
        assert -16 < n_bits + n * math.log2(freq / 1024) < 16 + 5e-4 * n
