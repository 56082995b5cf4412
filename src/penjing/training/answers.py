"""What teachers answered to every version of every sample, kept in float16, so that it is computed once.

answers-KEY.f16     a header (JSON, padded to 4,096 bytes), a byte for each answer that says whether it is known, the answers

A killed process loses at most the batch that it was writing: an answer is marked as known after it has been written.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penjing.errors import DataError

HEADER = 4096
LARGEST = torch.finfo(torch.float16).max


def rounded(answers: Tensor) -> Tensor:
    """Answers as float16 keeps them, in float32: relative precision 2^-11, clipped to +-65,504."""
    return answers.float().clamp(-LARGEST, LARGEST).half().float()


class KeptAnswers:
    """Answers by (sample, version), on disk or in memory.

    Args:
        shape: (n versions, n samples, ...) of all answers.
        key: what they are answers of, a hash.
        folder: where they are kept from one process to the next; None: in memory.
    Raises: DataError: the file is another's: of another teacher, other data, or another order of them.
    """

    def __init__(self, shape: tuple[int, ...], key: str, folder: Path | None = None) -> None:
        self.shape, self.key = shape, key
        n_versions, n = shape[:2]
        if folder is None:
            self.values: Any = np.zeros(shape, np.float16)
            self.known: Any = np.zeros((n_versions, n), np.uint8)
            return
        self.path = folder / f"answers-{key[:16]}.f16"
        if not self.path.exists():
            self._make()
        self._check()
        self.known = np.memmap(self.path, np.uint8, "r+", HEADER, (n_versions, n))
        self.values = np.memmap(self.path, np.float16, "r+", _start(shape), shape)

    @staticmethod
    def size_bytes(shape: tuple[int, ...]) -> int:
        """How much answers of this shape take."""
        return int(_start(shape) + 2 * np.prod(shape))

    def has(self, keys: Tensor) -> Tensor:
        """Which answers are known, (batch,), bool."""
        index, version = keys.T.numpy()
        return torch.from_numpy(self.known[version, index].astype(bool))

    def read(self, keys: Tensor) -> Tensor:
        """(batch, ...), float32."""
        index, version = keys.T.numpy()
        return torch.from_numpy(self.values[version, index]).float()

    def write(self, keys: Tensor, answers: Tensor) -> None:
        """Keep answers, (batch, ...)."""
        index, version = keys.T.numpy()
        self.values[version, index] = answers.detach().cpu().clamp(-LARGEST, LARGEST).half().numpy()
        self.known[version, index] = 1

    def _make(self) -> None:
        head = json.dumps({"key": self.key, "shape": self.shape}).encode().ljust(HEADER)
        partial = self.path.with_suffix(f".partial-{os.getpid()}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(head)
                file.flush()
                _reserve(file.fileno(), self.size_bytes(self.shape))
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def _check(self) -> None:
        try:
            with self.path.open("rb") as file:
                head = json.loads(file.read(HEADER))
            sound = self.path.stat().st_size == self.size_bytes(self.shape)
        except (OSError, ValueError):
            head, sound = {}, False
        if not sound or head.get("key") != self.key or tuple(head.get("shape", ())) != self.shape:
            raise DataError(
                f"{self.path}: these answers are of another teacher, of other data or another order of them, or the file is "
                "damaged. Delete it; answers are then computed anew."
            )


def _start(shape: tuple[int, ...]) -> int:
    """Where the answers begin: behind the header and the marks, at an even place."""
    n = shape[0] * shape[1]
    return HEADER + n + n % 2


def _reserve(descriptor: int, size: int) -> None:
    """Take the room now: a full disk shall be an error here, not a crash when a page is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
