"""Checkpoints of tensors: exactly or rounded as asked, written whole or not at all, read tensor by tensor."""

import hashlib
import math
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from penjing.artifact import Packing, encode, inspect, load, open_artifact, pack, save, unpack
from penjing.artifact import listing as listing_module
from penjing.artifact.codecs.plain import DTYPES
from penjing.artifact.container import LISTING
from penjing.artifact.listing import TYPES, Tensors, read_tensors, write_tensors
from penjing.entropy import ByteWriter
from penjing.errors import ArtifactError, RunError, SettingError
from penjing.graph import Network


def _checkpoint() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(60, 50),
        "a": torch.randn(7),  # also the beginning of a path
        "b..c [red]": torch.randn(40, 3, 3, 3).bfloat16(),
        "ü": torch.randn(64, 64).half(),
        "d": torch.randn(50, 50).double(),
        "n": torch.tensor(3),
        "none": torch.empty(0, 5),
        "nothing": torch.zeros(300, 300),
        "nan": torch.cat([torch.full((1, 40), math.nan), torch.randn(39, 40)]),
        "inf": torch.cat([torch.full((1, 40), -math.inf), torch.randn(39, 40)]),
        "tiny": torch.full((40, 40), 1e-41) * torch.arange(1600).reshape(40, 40),
        "f8": torch.randn(64, 64).to(torch.float8_e4m3fn),
        "u16": torch.arange(2000).to(torch.uint16).reshape(2, 1000),
        "yes": torch.rand(5, 5) > 0.5,
        "c": torch.randn(3, 3, dtype=torch.complex64),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(_checkpoint(), tmp_path / "in.safetensors", {"format": "pt", "said": 'ä"\n'})
    return tmp_path / "in.safetensors"


def _bits(value: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return value.dtype, tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_without_loss_the_file_comes_back_byte_for_byte(source: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    done = pack(source, tmp_path / "out.pj", progress=seen.append)
    assert done.size_bytes == (tmp_path / "out.pj").stat().st_size and not done.rounded and not done.kept
    assert sum(seen) == sum(t.numel() * t.element_size() for t in _checkpoint().values())
    assert unpack(tmp_path / "out.pj", tmp_path / "back.safetensors") == source.stat().st_size
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()
    first = (tmp_path / "out.pj").read_bytes()
    pack(source, tmp_path / "out.pj")
    assert (tmp_path / "out.pj").read_bytes() == first


@given(
    kind=st.sampled_from(TYPES),
    shape=st.lists(st.integers(0, 5), max_size=4),
    seed=st.integers(0, 99),
    same=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_type_and_shape_comes_back(
    kind: torch.dtype, shape: list[int], seed: int, same: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    data = rng.bytes(math.prod(shape) * kind.itemsize)
    data = data[: kind.itemsize] * math.prod(shape) if same else data
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    value = (flat > 127 if kind == torch.bool else flat.view(kind)).reshape(shape)
    save_file({"x": value}, tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "out")
    with open_artifact(tmp_path / "out") as artifact:
        assert artifact.entry("x").dtype == kind
        assert _bits(artifact.tensor("x")) == _bits(value)


@pytest.mark.parametrize(
    ("packing", "error"),
    [(Packing(step=0.1), 0.1 / math.sqrt(12)), (Packing(bits=8), 0.01), (Packing(half=True), 2.0**-11)],
)
def test_rounding_is_as_small_as_it_says(packing: Packing, error: float, source: Path, tmp_path: Path) -> None:
    done = pack(source, tmp_path / "out.pj", packing)
    unpack(tmp_path / "out.pj", tmp_path / "back.safetensors")
    before, after = load_file(source), load_file(tmp_path / "back.safetensors")
    assert {k: (v.dtype, v.shape) for k, v in after.items()} == {k: (v.dtype, v.shape) for k, v in before.items()}
    assert set(done.kept) == {"nan", "inf"} | (set() if packing.half else {"tiny"}) and "NaN" in done.kept["nan"]
    assert set(done.rounded) == {"a.weight", "d"} | ({"tiny"} if packing.half else {"b..c [red]", "ü"})
    for name, value in before.items():
        if name not in done.rounded:
            assert _bits(after[name]) == _bits(value), name
            continue
        if name == "tiny":
            assert done.rounded[name] < 0.1  # bfloat16: float16 would make zeros of it
            continue
        a, b = value.double(), after[name].double()
        found = float((a - b).norm() / a.norm())
        assert done.rounded[name] == pytest.approx(found, rel=0.2) and found < 1.1 * error
        if packing.step is not None:
            step = packing.step * float(a.std(correction=0))
            assert float((a - b).abs().max()) <= step / 2 * 2 ** (1 / 32) * 1.001 + 2**-8 * float(a.abs().max())
        if packing.bits is not None:
            largest = a.flatten(1).abs().amax(1)
            steps = largest / 127 * 2 ** (1 / 16)
            rest = 2**-8 if value.element_size() == 2 else 1e-6  # rounded once more to two bytes
            assert bool(((a - b).flatten(1).abs().amax(1) <= steps / 2 + rest * largest).all())


def test_what_is_asked_to_stay_stays(source: Path, tmp_path: Path) -> None:
    done = pack(source, tmp_path / "out.pj", Packing(step=0.1, exact=("a.*", "d")))
    assert "a.weight" not in done.rounded and "d" not in done.rounded and "ü" in done.rounded
    with open_artifact(tmp_path / "out.pj") as artifact:
        assert _bits(artifact.tensor("a.weight")) == _bits(_checkpoint()["a.weight"])


def test_one_way_of_rounding() -> None:
    for wrong in ({"step": 0.1, "bits": 4}, {"bits": 4, "half": True}, {"step": 0.0}, {"bits": 1}, {"steps": 1}):
        with pytest.raises(SettingError):
            Packing(**wrong)


def test_outliers_stay_exact(tmp_path: Path) -> None:
    value = torch.randn(100, 100)
    value[0, 0] = 1e9
    save_file({"w": value}, tmp_path / "in")
    done = pack(tmp_path / "in", tmp_path / "out", Packing(step=1e-4))
    assert "more than 32767 steps" in done.kept["w"]
    with open_artifact(tmp_path / "out") as artifact:
        assert _bits(artifact.tensor("w")) == _bits(value)


def test_tensors_are_read_one_at_a_time(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(source, tmp_path / "out.pj", Packing(step=0.1))
    rows = inspect(tmp_path / "out.pj")
    assert sum(row.size_bytes for row in rows) == (tmp_path / "out.pj").stat().st_size
    assert {row.name: row.shape for row in rows[1:-1]} == {n: tuple(v.shape) for n, v in _checkpoint().items()}
    with open_artifact(tmp_path / "out.pj") as artifact:
        assert artifact.tensors is not None and artifact.tensors.remarks == {"format": "pt", "said": 'ä"\n'}
        assert artifact.entry("a.weight").codec == "grid, contexts"
        with pytest.raises(ArtifactError, match=r'no tensor "a.wight"; did you mean "a.weight"'):
            artifact.tensor("a.wight")
    with pytest.raises(ArtifactError, match=r"holds tensors and no network.*penjing unpack"):
        load(tmp_path / "out.pj")


def test_a_network_is_unpacked_too(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("attention, compressed", "grids", "odd tensors"):
        network: Network = build(name)
        save(network, tmp_path / "small.pj")
        unpack(tmp_path / "small.pj", tmp_path / "back.safetensors")
        found = load_file(tmp_path / "back.safetensors")
        with open_artifact(tmp_path / "small.pj") as artifact:
            assert set(found) == set(artifact.names)
            for tensor in artifact.names:
                assert _bits(found[tensor]) == _bits(artifact.tensor(tensor))


def test_a_checkpoint_of_zeros_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penjing.artifact.container._LEAST_BYTES", 1 << 10)  # then 65,536 numbers cost nothing
    tensors = {f"t{i}": torch.full((200, 200), float(i)) for i in range(4)}
    save_file(tensors, tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "out")
    with open_artifact(tmp_path / "out") as artifact:
        assert [artifact.entry(f"t{i}").codec for i in range(4)].count("float32, raw") >= 1
        for name, value in tensors.items():
            assert torch.equal(artifact.tensor(name), value)


def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "out.pj").write_bytes(b"old")
    (folder / "back").write_bytes(b"old")
    pack(source, tmp_path / "good.pj")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"out.pj: could not be written.*then try again"):
            pack(source, folder / "out.pj")
        with pytest.raises(RunError, match="could not be written"):
            unpack(tmp_path / "good.pj", folder / "back")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"out.pj": b"old", "back": b"old"}


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "empty").write_bytes(b"")
    for name in ("zip", "empty"):
        with pytest.raises(ArtifactError, match=f"{name}: not a sound safetensors file"):
            pack(tmp_path / name, tmp_path / "out")
    with pytest.raises(ArtifactError, match="no such file"):
        pack(tmp_path / "none", tmp_path / "out")
    save_file({"a\n": torch.ones(2)}, tmp_path / "odd")
    with pytest.raises(ArtifactError, match=r"a tensor is called 'a\\n'; a name must be printable"):
        pack(tmp_path / "odd", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- hostile lists ----------------------------------------------------------------------------------------------------


def _file(listing: bytes, heads: bytes = b"", blobs: bytes = b"") -> bytes:
    writer = ByteWriter()
    writer.raw(b"\x8ePJ\x01")
    for section in (LISTING + listing, heads, b""):
        writer.uvarint(len(section))
    for section in (LISTING + listing, heads, b"", blobs):
        writer.raw(section)
    body = writer.finish()
    return body + struct.pack("<I", zlib.crc32(body))


def _record(name: str, shape: tuple[int, ...], kind: int = 0) -> bytes:
    writer = ByteWriter()
    writer.uvarint(len(name.encode()))
    writer.raw(name.encode())
    writer.uvarint(len(shape))
    for size in (*shape, kind):
        writer.uvarint(size)
    return writer.finish()


def _list(*records: bytes, n: int | None = None, end: bytes = b"\0") -> bytes:
    writer = ByteWriter()
    writer.uvarint(len(records) if n is None else n)
    for record in (*records, end):
        writer.raw(record)
    return b"\0" + writer.finish()


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (_list(n=1 << 40), "has 1099511627776 tensors; at most 65536"),
        (_list(_record("a", (1 << 40, 1 << 40))), "cannot have the shape"),
        (_list(_record("a", (0, 1 << 40, 1 << 40))), "cannot have the shape"),
        (_list(_record("a", (1 << 30,))), "may hold 33554432 numbers, this one would hold 1073741824"),
        (_list(_record("a", (2,)), _record("a", (2,))), "there twice"),
        (_list(_record("a", (1,) * 65)), "has 65 dimensions"),
        (_list(_record("a\x1b[2J", (1,))), "has no name"),
        (_list(_record("a", (1,), kind=16)), "a type that this version of penjing does not know"),
        (_list(end=b"\0\0"), "1 bytes are left over"),
        (_list(end=b"\1\1\xff\0"), "a remark is not valid UTF-8"),
        (_list(end=b"\xff\xff\xff\xff\x0f"), "needs 1 bytes, only 0 are left"),
        (b"", "written in a way"),
        (b"\x02", "written in a way"),
    ],
)
def test_hostile_lists_are_refused(listing: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.pj").write_bytes(_file(listing, bytes([1]) + bytes(4)))
    with pytest.raises(ArtifactError, match=message):
        open_artifact(tmp_path / "bad.pj")


def test_a_list_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"\x01" + packer.compress(bytes(1 << 26)) + packer.flush()
    (tmp_path / "bad.pj").write_bytes(_file(bomb))
    with pytest.raises(ArtifactError, match="does not end where it should"):
        open_artifact(tmp_path / "bad.pj")


def test_the_list_is_read_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"": (), "a": (0, 1 << 40), "ü" * 2000: (2,) * 20}
    tensors = Tensors(shapes, dict.fromkeys(shapes, DTYPES[3]), {"k": "v" * 10_000, "": ""})
    assert read_tensors(write_tensors(tensors)) == tensors
    with pytest.raises(ArtifactError, match=r"of type torch.complex128, which no file holds"):
        write_tensors(Tensors({"a": ()}, {"a": torch.complex128}))
    monkeypatch.setattr(listing_module, "MAX_TENSORS", 2)
    with pytest.raises(ArtifactError, match=r"3 tensors .* Split the checkpoint"):
        write_tensors(tensors)


# --- pinned files -----------------------------------------------------------------------------------------------------


def test_a_pinned_file_is_read_only_where_it_is_that_file(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "small.pj"
    path.write_bytes(encode(build("mixed")))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    load(path, sha256=right)
    inspect(path, sha256=right.upper())
    path.write_bytes(b"not even an artifact")
    for read in (load, inspect, open_artifact):
        with pytest.raises(ArtifactError, match=f"its SHA-256 is .* and must be {right}"):
            read(path, sha256=right)
    with pytest.raises(SettingError, match="64 hexadecimal digits"):
        load(path, sha256=right[1:])
