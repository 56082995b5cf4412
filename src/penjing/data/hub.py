"""Image classification sets from the Hugging Face hub, for users who are online."""

import numpy as np
import torch
from torch import Tensor

from penjing.data.augment import random_crop_and_flip
from penjing.data.splits import Splits, hold_out, in_memory_loader
from penjing.errors import DataError, MissingError


def hub(
    dataset: str,
    *,
    image: str = "image",
    label: str = "label",
    size: int = 32,
    grey: bool = False,
    n_valid: int | None = None,
    batch_size: int = 128,
    augment: bool = True,
    versions: int | None = None,
) -> Splits:
    """A set with a column of pictures and a column of class labels; its parts train, and test or validation.

    Args:
        dataset: the name on the hub, such as "ylecun/mnist".
        image, label: names of the columns.
        versions: of each training image, see `data.versions`; None draws a new change each time.
    Raises: MissingError: the extra is not installed. DataError: no such set, part or column, or no network.
    """
    try:
        import datasets  # noqa: PLC0415  optional dependency
    except ImportError:
        raise MissingError(
            "data: sets from the hub need an extra. Install it with: pip install 'penjing[hub]'"
        ) from None
    try:
        found = datasets.load_dataset(dataset)
    except Exception as error:
        raise DataError(
            f'data: the set "{dataset}" cannot be loaded from the hub ({str(error).splitlines()[0]}).'
        ) from None
    if "train" not in found or image not in found["train"].column_names or label not in found["train"].column_names:
        raise DataError(
            f'data: the set "{dataset}" must have a part train with the columns {image} and {label}, it is {found}.'
        )

    def part(name: str) -> tuple[Tensor, Tensor]:
        mode = "L" if grey else "RGB"
        pictures = [np.asarray(row[image].convert(mode).resize((size, size)), np.float32) / 255 for row in found[name]]
        stacked = torch.from_numpy(np.stack(pictures))
        return stacked[:, None] if grey else stacked.permute(0, 3, 1, 2).contiguous(), torch.tensor(found[name][label])

    images, labels = part("train")
    mean, deviation = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    train, valid = hold_out(len(labels), n_valid or max(len(labels) // 10, 1), 2024)
    test_name = next((name for name in ("test", "validation") if name in found), None)
    test = None
    if test_name is not None:
        test_images, test_labels = part(test_name)
        test = in_memory_loader((test_images - mean) / deviation, test_labels, 256)
    images = (images - mean) / deviation
    names = getattr(found["train"].features[label], "names", None) or [str(c) for c in range(int(labels.max()) + 1)]
    change = random_crop_and_flip(padding=max(size // 8, 1)) if augment else None
    return Splits(
        in_memory_loader(images[train], labels[train], batch_size, shuffle=True, augment=change, versions=versions),
        in_memory_loader(images[valid], labels[valid], 256),
        test,
        tuple(names),
    )
