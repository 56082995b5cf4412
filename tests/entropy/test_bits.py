"""Bits and bytes: what was written is read, in exactly these bytes, and never past the end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.entropy import BitReader, BitWriter, ByteReader, ByteWriter
from penjing.errors import ArtifactError, SettingError


def test_bytes_golden() -> None:
    writer = ByteWriter()
    for value in (0, 127, 128, 300, 2**63 - 1):
        writer.uvarint(value)
    for value in (0, -1, 1, -64, 64, -(2**62)):
        writer.svarint(value)
    writer.raw(b"pj")
    writer.f16([1.0, -2.5])
    writer.f32(0.1)
    expected = "007f8001ac02ffffffffffffffff7f0001027f8001ffffffffffffffff7f706a003c00c1cdcccc3d"
    assert writer.finish().hex() == expected
    assert len(writer) == len(expected) // 2

    reader = ByteReader(writer.finish())
    assert [reader.uvarint() for _ in range(5)] == [0, 127, 128, 300, 2**63 - 1]
    assert [reader.svarint() for _ in range(6)] == [0, -1, 1, -64, 64, -(2**62)]
    assert reader.raw(2) == b"pj"
    np.testing.assert_array_equal(reader.f16(2), np.array([1.0, -2.5], np.float16))
    np.testing.assert_array_equal(reader.f32(1), np.array([0.1], np.float32))
    assert reader.n_left == 0


def test_bits_golden() -> None:
    writer = BitWriter()
    writer.field(0b101, 3)
    writer.fields([1, 2, 3, 30], 5)
    writer.exp_golomb(9, 1)
    writer.rice(5, 1)
    writer.field(0, 0)
    # 101 00001 00010 00011 11110 | 00 101 1 | 00 1 1 and padding
    assert writer.n_bits == 33
    assert writer.finish() == int("10100001000100001111110001011001" + "10000000", 2).to_bytes(5, "big")

    reader = BitReader(writer.finish())
    assert reader.field(3) == 0b101
    assert reader.fields(4, 5).tolist() == [1, 2, 3, 30]
    assert reader.exp_golomb(1) == 9
    assert reader.rice(1) == 5
    assert reader.close() == 5


@given(st.lists(st.integers(0, 2**63 - 1)), st.lists(st.integers(-(2**62), 2**62 - 1)))
def test_varints_round_trip(unsigned: list[int], signed: list[int]) -> None:
    writer = ByteWriter()
    for value in unsigned:
        writer.uvarint(value)
    for value in signed:
        writer.svarint(value)
    reader = ByteReader(writer.finish())
    assert [reader.uvarint() for _ in unsigned] == unsigned
    assert [reader.svarint() for _ in signed] == signed
    assert reader.n_left == 0


@given(st.integers(0, 62), st.lists(st.integers(0, 2**62 - 1), max_size=40), st.integers(0, 7), st.integers(0, 9))
def test_bit_fields_round_trip(width: int, values: list[int], skew: int, order: int) -> None:
    fitting = [value & ((1 << width) - 1) for value in values]
    writer = BitWriter()
    writer.field(0, skew)
    writer.fields(np.array(fitting, dtype=np.int64), width)
    for value in fitting:
        writer.field(value, width)
        writer.exp_golomb(value >> 2, order)
        writer.rice(value & 1023, order)
    reader = BitReader(writer.finish())
    assert reader.field(skew) == 0
    assert reader.fields(len(fitting), width).tolist() == fitting
    for value in fitting:
        assert reader.field(width) == value
        assert reader.exp_golomb(order) == value >> 2
        assert reader.rice(order) == value & 1023
    assert reader.position == writer.n_bits
    assert reader.close() == len(writer.finish())


def test_bits_inside_bytes_end_at_a_whole_byte() -> None:
    bits = BitWriter()
    bits.fields([1, 2, 3], 3)
    reader = ByteReader(b"\x05" + bits.finish() + b"\x07")
    assert reader.uvarint() == 5
    inner = reader.open_bits()
    assert inner.fields(3, 3).tolist() == [1, 2, 3]
    reader.close_bits(inner)
    assert reader.uvarint() == 7


@pytest.mark.parametrize(
    ("read", "data", "message"),
    [
        (lambda r: r.uvarint(), b"", "table 3: a varint at byte 0 needs 1 bytes, only 0 are left"),
        (lambda r: r.uvarint(), b"\x80", "varint at byte 1"),
        (lambda r: r.uvarint(), b"\x80" * 9 + b"\x01", "longer than 9 bytes"),
        (lambda r: r.uvarint(), b"\x81\x00", "longer than its value needs"),
        (lambda r: r.raw(3), b"ab", "needs 3 bytes, only 2"),
        (lambda r: r.raw(-1), b"ab", "needs -1 bytes"),
        (lambda r: r.f16(2), b"abc", "2 float16 values"),
        (lambda r: r.f32(1 << 60), b"abc", "float32 values"),
        (lambda r: r.open_bits().field(9), b"a", "field of 9 bits at bit 0 needs 9 bits, only 8"),
        (lambda r: r.open_bits().fields(1 << 60, 5), b"a", "only 8 are left"),
        (lambda r: r.open_bits().fields(-1, 5), b"a", "cannot be read"),
        (lambda r: r.open_bits().exp_golomb(0), b"\0" * 40, "more than 61 zero bits"),
        (lambda r: r.open_bits().rice(0), b"\0", "field of 1 bits at bit 8"),
    ],
)
def test_readers_refuse(read: object, data: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read(ByteReader(data, "table 3"))  # type: ignore[operator]


def test_padding_must_be_zero() -> None:
    reader = BitReader(b"\x81")
    assert reader.field(1) == 1
    with pytest.raises(ArtifactError, match="pad the last byte"):
        reader.close()


def test_writers_refuse_what_does_not_fit() -> None:
    for value in (-1, 2**63):
        with pytest.raises(SettingError, match="varint"):
            ByteWriter().uvarint(value)
    with pytest.raises(SettingError, match="does not fit"):
        BitWriter().field(8, 3)
    with pytest.raises(SettingError, match="do not fit"):
        BitWriter().fields([1, 8], 3)
    with pytest.raises(SettingError, match="width"):
        BitWriter().fields([1], 63)


@given(st.binary(max_size=30), st.integers(0, 15))
def test_any_bytes_are_read_or_refused(data: bytes, order: int) -> None:
    for read in (
        lambda: ByteReader(data).svarint(),
        lambda: BitReader(data).exp_golomb(order),
        lambda: BitReader(data).rice(order),
    ):
        try:
            read()
        except ArtifactError:
            continue
