"""A checkpoint of tensors by name as a file, without a network; tensor by tensor, so that it may be larger than memory."""

import json
import math
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from penjing.artifact.codecs import CODECS, Sink
from penjing.artifact.codecs.codes import CONTEXT
from penjing.artifact.codecs.grid import GridCodec
from penjing.artifact.codecs.half import HALVES
from penjing.artifact.codecs.plain import Constant, Plain, dtype_number, elements, write_planes
from penjing.artifact.container import CODEC_OF, LISTING, beginning, check_size, most_elements
from penjing.artifact.listing import TYPES, Tensors, carried, write_tensors
from penjing.entropy import context_coder
from penjing.errors import ArtifactError, SettingError
from penjing.files import written_atomically
from penjing.representation.grid import MAX_CODE
from penjing.representation.half import FORMATS
from penjing.representation.steps import LARGEST, PER_OCTAVE, SMALLEST, exponents_of, steps_of
from penjing.settings import Settings

_LEAST_WEIGHTS = 1024
_BLOCK = 1 << 20
_CHUNK = 1 << 20


class Packing(Settings):
    """How a checkpoint is written. Without `step`, `bits` and `half` every tensor comes back bit for bit.

    Otherwise float tensors of at least two dimensions and 1024 numbers are rounded; biases, norms, whole numbers, and what
    holds NaN or infinity stay exact.

    Raises: SettingError: more than one of the three.
    """

    step: float | None = Field(
        default=None, gt=0, le=4, description="round to multiples of this share of each tensor's standard deviation"
    )
    bits: int | None = Field(
        default=None, ge=2, le=15, description="round to codes of this width, each row in steps of its own"
    )
    half: bool = Field(default=False, description="round to float16, or bfloat16 where that is too narrow")
    exact: tuple[str, ...] = Field(default=(), description="names or globs of tensors that stay exact")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.step is not None) + (self.bits is not None) + self.half > 1:
            raise SettingError("pack: give one of step, bits and half; or none, for a file without loss.")
        return self


@dataclass
class Packed:
    """What became of a checkpoint.

    Attributes:
        n_tensors, n_numbers: all of them.
        source_bytes, size_bytes: of the files.
        rounded: names of tensors that lost something, with the relative error sqrt(sum (w' - w)^2 / sum w^2).
        kept: names of tensors that would have been rounded and could not be, with the reason.
    """

    n_tensors: int = 0
    n_numbers: int = 0
    source_bytes: int = 0
    size_bytes: int = 0
    rounded: dict[str, float] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def pack(
    source: str | Path,
    target: str | Path,
    packing: Packing | None = None,
    *,
    progress: Callable[[int], Any] = lambda n_bytes: None,
) -> Packed:
    """Write a safetensors file as an artifact of tensors, to be read by `open_artifact` and `unpack`.

    In memory is one tensor at a time, and of that at most its codes and their bits. What is left after an interruption is
    not the target; a target that was there before is untouched until the new one is complete.

    Args:
        packing: how; default: without loss.
        progress: called with the bytes of every tensor that is done.
    Raises: ArtifactError: no sound safetensors file; a tensor of a type that no file holds, by its name; too many tensors.
        RunError: the target cannot be written.
    """
    packing, target = packing or Packing(), Path(target)
    with _opened(Path(source)) as checkpoint:
        names = list(checkpoint.offset_keys())
        tensors = Tensors(
            {name: tuple(checkpoint.get_slice(name).get_shape()) for name in names},
            {name: _value(checkpoint, name, source).dtype for name in names},
            _remarks(Path(source)),
        )
        listing = LISTING + write_tensors(tensors)  # what cannot be listed is refused before anything is written
        report = Packed(len(names), sum(map(math.prod, tensors.shapes.values())), Path(source).stat().st_size)
        with written_atomically(target) as file, tempfile.TemporaryFile(dir=target.parent) as spool:
            sink = _Spooled(spool)
            for name in names:
                value = _value(checkpoint, name, source)
                _write(name, value, packing, sink, report)
                progress(value.numel() * value.element_size())
            _finish(file, beginning(listing, sink), spool)
            report.size_bytes = file.tell()
            check_size(tensors.slots(), report.size_bytes, str(target))
    return report


class _Spooled(Sink):
    """A sink whose blobs go to a file."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file
        self.n_elements = 0

    def blob(self, data: bytes | bytearray | memoryview) -> None:
        self.file.write(data)

    def may_hold(self, n: int, n_bytes: int = 0) -> bool:
        """Whether `n` more elements in so many bytes are within what a file of that size may hold."""
        return self.n_elements + n <= most_elements(self.file.tell() + n_bytes)


def _write(name: str, value: Tensor, packing: Packing, sink: _Spooled, report: Packed) -> None:
    """Append one tensor, rounded or exactly."""
    lossy = packing.step is not None or packing.bits is not None or packing.half
    wanted = lossy and value.is_floating_point() and value.dim() > 1 and value.numel() >= _LEAST_WEIGHTS
    wanted = wanted and value.element_size() > (2 if packing.half else 1)
    wanted = wanted and not any(fnmatchcase(name, glob) for glob in packing.exact) and not Constant.fits(value)
    if not wanted:
        _write_exactly(carried(value), sink)
    else:
        try:
            write = _write_half if packing.half else partial(_write_grid, packing=packing)
            report.rounded[name] = write(value, sink=sink)
        except _NotRoundedError as reason:
            report.kept[name] = str(reason)
            _write_exactly(value, sink)
    sink.n_elements += value.numel()


class _NotRoundedError(Exception):
    """Why a tensor stays exact; nothing of it is written yet."""


def _write_exactly(value: Tensor, sink: _Spooled) -> None:
    number = dtype_number(value)
    # what costs next to nothing is written so only as far as a file may hold it
    if sink.may_hold(value.numel()) and Constant.fits(value):
        sink.heads.raw(bytes([CODEC_OF["constant"] | number << 4]))
        CODECS[CODEC_OF["constant"]].write(value, (), number, sink)
        return
    sink.heads.raw(bytes([CODEC_OF["plain"] | number << 4]))
    _write_planes(value, sink)


def _write_planes(value: Tensor, sink: _Spooled) -> None:
    begun, n_bytes = sink.file.tell(), value.numel() * value.element_size()
    packed = write_planes(value, sink.file) if n_bytes else 0
    if packed + 4 < n_bytes and sink.may_hold(value.numel()):
        Plain.write_head(packed, sink)
        return
    sink.file.seek(begun)
    sink.file.truncate()
    Plain.write_head(None, sink)
    data = elements(value)
    for start in range(0, n_bytes, _CHUNK):
        sink.blob(data[start : start + _CHUNK].data)


def _write_half(value: Tensor, sink: _Spooled) -> float:
    """Returns: the relative error."""
    rows = value.reshape(len(value), -1)
    _largest(rows)
    errors = [
        _relative_error((rows[at].float(), rows[at].to(FORMATS[half]).float()) for at in _blocks(rows))
        for half in HALVES
    ]
    variant = int(np.argmin(errors))  # float16, but for very large or very small numbers
    sink.heads.raw(bytes([CODEC_OF["half"] | variant << 4]))
    _write_planes(rows.to(FORMATS[HALVES[variant]]), sink)
    return errors[variant]


def _write_grid(value: Tensor, sink: _Spooled, packing: Packing) -> float:
    """Returns: the relative error."""
    rows = value.reshape(len(value), -1)
    exponents = _exponents(rows, packing)
    steps = steps_of(exponents)
    codes = np.empty(tuple(rows.shape), np.int16)

    def rounded() -> Iterator[tuple[Tensor, Tensor]]:
        for at in _blocks(rows):
            step = steps[at[0]] if len(steps) > 1 else steps
            block = rows[at].float()
            whole = torch.round(block / step)
            codes[at] = whole.numpy()
            yield block, whole * step

    error = _relative_error(rounded())
    data = context_coder.encode(codes)
    if not sink.may_hold(value.numel(), len(data)):
        raise _NotRoundedError("so few bits a number would be refused as a decompression bomb; take a smaller step")
    sink.heads.raw(bytes([CODEC_OF["grid"] | CONTEXT << 4]))
    sizes = (len(steps), *[1] * (value.dim() - 1))
    GridCodec.write_encoded(data, int(codes.min()), int(codes.max()), steps.reshape(sizes), sink)
    return error


def _exponents(rows: Tensor, packing: Packing) -> Tensor:
    """Of the steps, int16, (1, 1) or (rows, 1). Raises: _NotRoundedError: no step serves."""
    largest = _largest(rows)
    if packing.bits is not None:
        high = 2 ** (packing.bits - 1) - 1
        wanted = torch.where(largest > 0, largest.double() / high, 1.0)
        _check_steps(wanted)
        return (torch.log2(wanted) * PER_OCTAVE - 1e-6).ceil().clamp(max=LARGEST).to(torch.int16)[:, None]
    assert packing.step is not None
    step = torch.tensor([[packing.step * _deviation(rows)]], dtype=torch.float64)
    _check_steps(step)
    exponents = exponents_of(step)
    if float(largest.max()) > MAX_CODE * float(steps_of(exponents)):
        raise _NotRoundedError(f"its largest number is more than {MAX_CODE} steps from 0")
    return exponents


def _check_steps(steps: Tensor) -> None:
    least = float(steps_of(torch.tensor(SMALLEST)))
    if float(steps.min()) < least:
        raise _NotRoundedError(f"it needs steps of less than {least:.1e}, the smallest that a file has")


def _largest(rows: Tensor) -> Tensor:
    """The largest magnitude of each row, float32. Raises: _NotRoundedError: one is not finite."""
    largest = torch.zeros(len(rows))
    for at in _blocks(rows):
        largest[at[0]] = torch.maximum(largest[at[0]], rows[at].float().abs().amax(1))
    if not bool(torch.isfinite(largest).all()):
        raise _NotRoundedError("it holds NaN, infinity, or numbers beyond float32")
    return largest


def _deviation(rows: Tensor) -> float:
    """The standard deviation of all elements. Raises: _NotRoundedError: they are all the same."""
    first = float(rows[0, 0])  # differences from one of them: no large number is subtracted from another
    total = squares = 0.0
    for at in _blocks(rows):
        block = rows[at].double() - first
        total += float(block.sum())
        squares += float(block.square().sum())
    n = rows.numel()
    variance = squares / n - (total / n) ** 2
    if not 0 < variance < math.inf:
        raise _NotRoundedError("its numbers do not differ")
    return math.sqrt(variance)


def _blocks(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """A matrix in parts of about a million numbers."""
    n, width = rows.shape
    high, wide = max(1, _BLOCK // width), min(width, _BLOCK)
    for i in range(0, n, high):
        for j in range(0, width, wide):
            yield slice(i, i + high), slice(j, j + wide)


def _relative_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """sqrt(sum (b - a)^2 / sum a^2)."""
    wrong = right = 0.0
    for value, rounded in pairs:
        wrong += float((rounded.double() - value.double()).square().sum())
        right += float(value.double().square().sum())
    return math.sqrt(wrong / right) if right else 0.0


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as checkpoint:
            yield checkpoint
    except SafetensorError as error:
        raise ArtifactError(
            f"{path}: not a sound safetensors file ({error}). Save it with safetensors.torch.save_file."
        ) from None
    except FileNotFoundError:
        raise ArtifactError(f"{path}: there is no such file. Give the path of a safetensors file.") from None


def _remarks(path: Path) -> dict[str, str]:
    """What a sound file says about itself, in its order; the library has them in another one each time."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return dict(header.get("__metadata__") or {})


def _value(checkpoint: Any, name: str, path: str | Path) -> Tensor:
    """A tensor, in the file's pages. Raises: ArtifactError: of a type that no file holds."""
    try:
        value: Tensor = checkpoint.get_tensor(name)
    except (AttributeError, KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise ArtifactError(f'{path}: the tensor "{name}" cannot be read ({error}).') from None
    if value.dtype not in TYPES:
        raise ArtifactError(
            f'{path}: the tensor "{name}" is of type {value.dtype}, which no file of penjing holds. '
            f"Convert it to one of {', '.join(str(t).removeprefix('torch.') for t in TYPES)}, or leave it out."
        )
    return value


def _finish(file: BinaryIO, start: bytes, spool: BinaryIO) -> None:
    """The whole file: its beginning, the blobs, the checksum."""
    checksum = zlib.crc32(start)
    file.write(start)
    spool.seek(0)
    while chunk := spool.read(_CHUNK):
        checksum = zlib.crc32(chunk, checksum)
        file.write(chunk)
    file.write(struct.pack("<I", checksum))
