"""Pictures in folders: one folder a part, one folder a class in it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from penjing.data.augment import random_crop_and_flip
from penjing.data.splits import Splits, hold_out, in_memory_loader
from penjing.errors import DataError, SettingError

_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm"}


def image_folder(
    folder: str | Path,
    *,
    size: int = 32,
    grey: bool = False,
    n_valid: int | None = None,
    batch_size: int = 128,
    augment: bool = True,
    erase: int = 0,
    versions: int | None = None,
    mean: Sequence[float] | None = None,
    deviation: Sequence[float] | None = None,
) -> Splits:
    """FOLDER/train/CLASS/*.jpg and, where they exist, FOLDER/valid/... (or val) and FOLDER/test/...

    Pictures are scaled to `size` x `size`, their channels by `mean` and standard `deviation` (of values in [0, 1]; of the
    training part unless given: a trained network wants those that it was trained with), and kept in memory. Without a
    validation folder, `n_valid` training pictures (a tenth unless told) are held out. Training pictures are shifted and
    mirrored at random unless `augment` is False; with `erase`, a square of so many pixels a side is left out of each; with
    `versions`, in so many ways each, see `data.versions`.
    Raises: DataError: the folder is not laid out like this, a picture cannot be read, or a class is missing somewhere.
    SettingError: a mean or a deviation that is not a number for each channel, or not above 0; squares as large as a picture.
    """
    root = Path(folder)
    if not 0 <= erase < size:
        raise SettingError(f"image-folder: erase must be 0 to {size - 1}, less than a picture's side, got {erase}.")
    if erase and not augment:
        raise SettingError("image-folder: erase needs augment: true; without it training pictures stay as they are.")
    if not (root / "train").is_dir():
        raise DataError(
            f"image-folder: {root} has no folder train. Lay pictures out as {root}/train/CLASS/picture.jpg, "
            f"and {root}/test/CLASS/picture.jpg for a test set."
        )
    classes = tuple(sorted(path.name for path in (root / "train").iterdir() if path.is_dir()))
    if not classes:
        raise DataError(
            f"image-folder: {root / 'train'} holds no folders. Lay pictures out as {root}/train/CLASS/picture.jpg."
        )
    images, labels = _read(root / "train", classes, size, grey)
    middle = _by_channel("mean", mean, images.mean((0, 2, 3)))
    spread = _by_channel("deviation", deviation, images.std((0, 2, 3)).clamp_min(1e-6))

    def scaled(pictures: Tensor) -> Tensor:
        return (pictures - middle) / spread

    valid_folder = next((root / name for name in ("valid", "val") if (root / name).is_dir()), None)
    if valid_folder is not None:
        valid_images, valid_labels = _read(valid_folder, classes, size, grey)
    else:
        train, valid = hold_out(len(labels), n_valid or max(len(labels) // 10, 1), 2024)
        valid_images, valid_labels = images[valid], labels[valid]
        images, labels = images[train], labels[train]
    test = None
    if (root / "test").is_dir():
        test_images, test_labels = _read(root / "test", classes, size, grey)
        test = in_memory_loader(scaled(test_images), test_labels, 256)
    change = random_crop_and_flip(padding=max(size // 8, 1), erase=erase) if augment else None
    return Splits(
        in_memory_loader(scaled(images), labels, batch_size, shuffle=True, augment=change, versions=versions),
        in_memory_loader(scaled(valid_images), valid_labels, 256),
        test,
        classes,
    )


def _by_channel(name: str, given: Sequence[float] | None, found: Tensor) -> Tensor:
    """(1, channels, 1, 1)."""
    values = found if given is None else torch.tensor([float(value) for value in given])
    if (
        len(values) != len(found)
        or not bool(torch.isfinite(values).all())
        or (name == "deviation" and values.min() <= 0)
    ):
        raise SettingError(
            f"image-folder: {name} must be {len(found)} numbers{', above 0' * (name == 'deviation')}, got {given}."
        )
    return values.view(1, -1, 1, 1)


def _read(folder: Path, classes: tuple[str, ...], size: int, grey: bool) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    unknown = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in classes)
    if unknown:
        raise DataError(f"image-folder: {folder} has the class {unknown[0]}, which the training part does not have.")
    for label, name in enumerate(classes):
        files = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in _ENDINGS)
        if not files:
            raise DataError(f"image-folder: {folder / name} holds no pictures ({', '.join(sorted(_ENDINGS))}).")
        for path in files:
            images.append(_picture(path, size, grey))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).float() / 255, torch.tensor(labels)


def _picture(path: Path, size: int, grey: bool) -> np.ndarray:
    try:
        with Image.open(path) as file:
            picture = file.convert("L" if grey else "RGB")
            if picture.size != (size, size):
                picture = picture.resize((size, size), Image.Resampling.BILINEAR)
            array = np.asarray(picture)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"image-folder: {path} cannot be read as a picture ({error}).") from None
    return array[None] if grey else array.transpose(2, 0, 1)
