"""Gaps and fillers: what comes back is what went in, the sizes are those of the bytes, and Huffman keeps its bound."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.entropy import code_lengths, count, entropy_bits_per_symbol, payload_bits, relative_index
from penjing.entropy.relative_index import Entries, bits, decode, encode, from_entries, to_entries
from penjing.errors import ArtifactError, DataError, SettingError

sparse = st.lists(st.one_of(st.just(0), st.just(0), st.just(0), st.integers(0, 6)), max_size=300)


def _gaps_one_by_one(codes: list[int], index_bits: int) -> list[tuple[int, int]]:
    """The paper's figure 2, read aloud."""
    found, zeros = [], 0
    after_last = max((i for i, code in enumerate(codes) if code), default=-1) + 1
    for code in codes[:after_last]:
        if code or zeros == (1 << index_bits) - 1:
            found.append((zeros, code))
            zeros = 0
        else:
            zeros += 1
    return found


def test_the_example_of_the_docstring() -> None:
    entries = to_entries([0, 0, 0, 5, 0, 0, 0, 0, 0, 2, 0], 2)
    assert entries.gaps.tolist() == [3, 3, 1] and entries.values.tolist() == [5, 0, 2]
    assert bits([0, 0, 0, 5, 0, 0, 0, 0, 0, 2, 0], 6, 2)[:3] == (3, 1, 3 * (3 + 2))


@given(sparse, st.integers(1, 5))
def test_entries_are_what_counting_gives_and_lead_back(codes: list[int], index_bits: int) -> None:
    entries = to_entries(np.array(codes, np.int64), index_bits)
    assert list(zip(entries.gaps.tolist(), entries.values.tolist(), strict=True)) == _gaps_one_by_one(codes, index_bits)
    assert from_entries(entries, len(codes)).tolist() == codes


@given(sparse, st.integers(1, 5), st.booleans())
def test_bytes_lead_back_and_their_number_is_what_the_accounts_say(
    codes: list[int], index_bits: int, with_huffman: bool
) -> None:
    data = encode(np.array(codes, np.int64), 7, index_bits, with_huffman=with_huffman)
    assert decode(data, len(codes)).tolist() == codes
    found = bits(np.array(codes, np.int64), 7, index_bits)
    if with_huffman:
        assert 8 * len(data) == found.values + found.gaps + found.tables
    elif found.entries:
        assert 8 * len(data) == 32 + 8 * (len(codes) > 127) + 8 * (found.entries > 127) + sum(
            -(-found.entries * width // 8) * 8 for width in (3, index_bits)
        )


@given(st.lists(st.integers(0, 4000), min_size=2, max_size=40).filter(lambda c: sum(n > 0 for n in c) > 1))
def test_huffman_is_at_least_the_entropy_and_less_than_a_bit_above(counts: list[int]) -> None:
    average = payload_bits(counts, code_lengths(counts)) / sum(counts)
    entropy = entropy_bits_per_symbol(counts)
    assert entropy <= average + 1e-9 and average < entropy + 1


def test_a_sparse_layer_has_the_papers_figures() -> None:
    """8 % of 235,200 weights, 6-bit values, 5-bit gaps: 3.1 % of the dense layer, as in the paper's table 2."""
    generator = np.random.default_rng(0)
    codes = np.where(generator.random(235_200) < 0.08, generator.integers(1, 64, 235_200), 0)
    found = bits(codes, 64, 5)
    assert found.fixed / (32 * 235_200) == pytest.approx(0.031, abs=0.002)
    gaps = count(to_entries(codes, 5).gaps, 32)
    assert found.gaps == pytest.approx(found.entries * entropy_bits_per_symbol(gaps), rel=0.02)
    assert found.fillers == int((to_entries(codes, 5).values == 0).sum()) > 0


def test_what_cannot_be_written_or_read_is_refused() -> None:
    with pytest.raises(SettingError, match=r"index_bits must be in 1\.\.15, got 0"):
        to_entries([1], 0)
    with pytest.raises(DataError, match="integers >= 0"):
        to_entries([0.5], 3)
    with pytest.raises(DataError, match="below 3, got 3"):
        encode([0, 3], 3, 2)
    with pytest.raises(ArtifactError, match="there are only 2 codes"):
        from_entries(Entries(np.array([1, 0], np.int32), np.array([1, 1], np.int32)), 2)
    data = encode([0, 0, 3, 0, 1] * 30, 4, 3)
    with pytest.raises(ArtifactError, match="cannot be"):
        decode(data, 149)
    assert decode(encode(np.zeros(500, np.int8), 2, 4), 500).tolist() == [0] * 500


@pytest.mark.parametrize("with_huffman", [False, True])
def test_damage_is_an_error_or_codes_of_the_right_number(with_huffman: bool) -> None:
    generator = np.random.default_rng(1)
    data = bytearray(
        encode(generator.integers(0, 5, 400) * (generator.random(400) < 0.2), 5, 4, with_huffman=with_huffman)
    )
    for place in range(len(data)):
        for mask in (1, 128, 255):
            damaged = bytearray(data)
            damaged[place] ^= mask
            for content in (damaged, damaged[:place]):
                try:
                    found = relative_index.decode(content, 1000)
                except ArtifactError:
                    continue
                assert len(found) <= 1000 and found.min() >= 0
