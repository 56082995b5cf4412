"""Randomness from names: the same run, stage and epoch always draw the same numbers, wherever the program was stopped."""

import hashlib
import random
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, *names: object) -> int:
    """A seed in [0, 2^63) for a place in a run: SHA-256 of the run's seed and the place's names."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), NumPy's legacy generator and `random`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_loader(loader: Any, seed: int) -> None:
    """Seed the generators that a data loader and its samplers have of their own."""
    seen: set[int] = set()
    owners = [loader]
    while owners:
        owner = owners.pop()
        if owner is None or id(owner) in seen:
            continue
        seen.add(id(owner))
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        owners += [getattr(owner, name, None) for name in ("sampler", "batch_sampler", "base_dataloader")]
