"""scikit-learn's digits: 1,797 handwritten digits of 8 x 8 pixels, which come with that library."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from penjing.data.augment import random_affine
from penjing.data.splits import Splits, hold_out, in_memory_loader

N_TEST, N_VALID, SPLIT_SEED = 450, 250, 2024


def digits(*, batch_size: int = 64, augment: bool = True, versions: int | None = None) -> Splits:
    """The digits, scaled to zero mean and unit standard deviation of the training part; 1,097 / 250 / 450 samples.

    Args:
        versions: of each training image, see `data.versions`; None draws a new change each time.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    data = load_digits()
    images = torch.from_numpy(np.asarray(data.images, dtype=np.float32)).unsqueeze(1) / 16
    labels = torch.from_numpy(np.asarray(data.target, dtype=np.int64))
    rest, test = hold_out(len(labels), N_TEST, SPLIT_SEED)
    inner_train, inner_valid = hold_out(len(rest), N_VALID, SPLIT_SEED + 1)
    train, valid = rest[inner_train], rest[inner_valid]
    mean, deviation = images[train].mean(), images[train].std()
    images = (images - mean) / deviation

    def part(index: Tensor, shuffle: bool = False) -> torch.utils.data.DataLoader:
        change = random_affine(degrees=10, scale=0.1, shear=0.1, shift=0.7) if shuffle and augment else None
        return in_memory_loader(
            images[index],
            labels[index],
            batch_size if shuffle else 256,
            shuffle=shuffle,
            augment=change,
            versions=versions if shuffle else None,
        )

    return Splits(part(train, True), part(valid), part(test), tuple(str(c) for c in range(10)))
