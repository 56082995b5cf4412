"""MNIST from its IDX files, plain or gzipped."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from penjing.data.augment import random_affine
from penjing.data.splits import Splits, in_memory_loader
from penjing.errors import DataError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MEAN, DEVIATION = 0.1307, 0.3081


def mnist(
    folder: str | Path,
    *,
    n_valid: int = 5000,
    batch_size: int = 128,
    augment: bool = True,
    versions: int | None = None,
) -> Splits:
    """MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels; the last `n_valid` training images validate.

    Pixels are scaled to [0, 1], then by mean 0.1307 and standard deviation 0.3081. Training images are rotated, scaled,
    sheared and shifted at random unless `augment` is False.
    Args:
        folder: where the four files lie, directly or below (`raw`, `MNIST/raw`).
        versions: of each training image, see `data.versions`; None draws a new change each time.
    Raises: DataError: no such folder or files, with what to put where; or a damaged file.
    Source: LeCun, Cortes and Burges, The MNIST database of handwritten digits, 1998.
    """
    paths = _find(Path(folder))
    tensors = [read_idx(path) for path in paths]
    for i in (0, 2):
        if tensors[i].dim() != 3 or tensors[i + 1].dim() != 1 or len(tensors[i]) != len(tensors[i + 1]):
            raise DataError(f"mnist: {paths[i]} and {paths[i + 1]} do not belong together.")
    images, test_images = ((t.unsqueeze(1).float() / 255 - MEAN) / DEVIATION for t in (tensors[0], tensors[2]))
    labels, test_labels = tensors[1].long(), tensors[3].long()
    if not 0 < n_valid < len(labels):
        raise DataError(f"mnist: n_valid must be 1 to {len(labels) - 1}, got {n_valid}.")
    change = random_affine(degrees=10, scale=0.1, shear=0.1, shift=1.5) if augment else None
    return Splits(
        in_memory_loader(
            images[:-n_valid], labels[:-n_valid], batch_size, shuffle=True, augment=change, versions=versions
        ),
        in_memory_loader(images[-n_valid:], labels[-n_valid:], 500),
        in_memory_loader(test_images, test_labels, 500),
        tuple(str(c) for c in range(10)),
    )


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes, gzipped or not.

    Raises: DataError: not such a file, or cut off.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Copy it again.") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: not an IDX file of unsigned bytes.")
    rank = data[3]
    if len(data) < 4 + 4 * rank:
        raise DataError(f"{path}: the file is cut off.")
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    content = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if content.size != int(np.prod(shape)):
        raise DataError(
            f"{path}: it should hold {int(np.prod(shape))} values of shape {shape}, it holds {content.size}."
        )
    return torch.from_numpy(content.reshape(shape).copy())


def _find(folder: Path) -> list[Path]:
    for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
        found = [next((p for p in (place / name, place / f"{name}.gz") if p.is_file()), None) for name in FILES]
        if all(found):
            return [path for path in found if path is not None]
    raise DataError(
        f"mnist: the files {', '.join(FILES)} (plain or .gz) are not in {folder}, nor in raw or MNIST/raw below it. "
        "Download MNIST in IDX format, put the four files there, and give that folder with --data."
    )
