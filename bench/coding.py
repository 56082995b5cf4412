"""How fast codes are written and read: the coders on the codes of a file's own tensors, one thread.

    python bench/coding.py small.pj [more.pj ...] [--repeat 7] [--json FILE]

Each coder writes and reads all codes of a file, tensor by tensor; what is read is compared with what was written. Times are
the processor's, medians of the repeats after one that is not counted. Required of the context coder, which makes the smallest
files: 30 million weights a second when reading; of the fast ones 60 million.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penjing.artifact import load
from penjing.entropy import (
    RangeDecoder,
    RangeEncoder,
    best_frequencies,
    code_lengths,
    context_coder,
    count,
    huffman,
    trellis,
)
from penjing.errors import PenjingError
from penjing.representation import Codebook, Grid, named_weights, representations

Coder = tuple[Callable[[np.ndarray], tuple[Any, int]], Callable[[Any, tuple[int, int]], np.ndarray]]
"""Writes a matrix of codes: what reading needs, and its bytes with tables; reads it."""


def matrices(path: Path) -> list[np.ndarray]:
    """The codes of a file's matrices and filters, int32, a row for each output."""
    network = load(path, for_training=True)
    found = []
    for _, owner, name in named_weights(network):
        stack = representations(owner, name)
        if not stack or not isinstance(stack[-1], (Codebook, Grid)) or getattr(owner, name).dim() < 2:
            continue
        codes = stack[-1].codes.numpy().astype(np.int32)
        found.append(codes.reshape(len(codes), -1))
    return found


def _contexts(codes: np.ndarray) -> tuple[Any, int]:
    dependent = trellis.indices(codes) is not None
    data = context_coder.encode(codes, dependent=dependent)
    return (data, dependent), len(data)


def _read_contexts(written: Any, shape: tuple[int, int]) -> np.ndarray:
    data, dependent = written
    return context_coder.decode(data, *shape, dependent=dependent)


def _huffman(codes: np.ndarray) -> tuple[Any, int]:
    low, k = int(codes.min()), int(codes.max() - codes.min()) + 1
    lengths = code_lengths(count(codes - low, k))
    data = huffman.encode((codes - low).reshape(-1), lengths)
    return (data, lengths, low), len(data) + k // 2


def _read_huffman(written: Any, shape: tuple[int, int]) -> np.ndarray:
    data, lengths, low = written
    return huffman.decode(data, shape[0] * shape[1], lengths).astype(np.int32).reshape(shape) + low


def _range(codes: np.ndarray) -> tuple[Any, int]:
    low, k = int(codes.min()), int(codes.max() - codes.min()) + 1
    model = best_frequencies(count(codes - low, k))
    coder = RangeEncoder()
    coder.encode((codes - low).reshape(-1), model.freqs)
    data = coder.finish()
    return (data, model.freqs, low), len(data) + len(model.table)


def _read_range(written: Any, shape: tuple[int, int]) -> np.ndarray:
    data, freqs, low = written
    return RangeDecoder(data).decode(shape[0] * shape[1], freqs).reshape(shape) + low


CODERS: dict[str, Coder] = {
    "contexts": (_contexts, _read_contexts),
    "range": (_range, _read_range),
    "huffman": (_huffman, _read_huffman),
}


def measure(path: Path, repeats: int) -> list[dict[str, Any]]:
    """Bytes and millions of weights a second, by coder."""
    codes = matrices(path)
    n = sum(matrix.size for matrix in codes)
    rows = []
    for name, (write, read) in CODERS.items():
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats + 1):
            begun = time.process_time()
            written = [write(matrix) for matrix in codes]
            times[0].append(time.process_time() - begun)
            begun = time.process_time()
            found = [read(data, matrix.shape) for (data, _), matrix in zip(written, codes, strict=True)]
            times[1].append(time.process_time() - begun)
        if not all(np.array_equal(a, b) for a, b in zip(found, codes, strict=True)):
            raise SystemExit(f"{name} did not give back what it was given")
        speeds = [n / statistics.median(own[1:]) / 1e6 for own in times]
        rows.append(
            {
                "file": path.name,
                "coder": name,
                "weights": n,
                "bytes": sum(size for _, size in written),
                "write": speeds[0],
                "read": speeds[1],
            }
        )
    return rows


def main() -> None:
    """Measure, print a table, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for path in given.files:
        try:
            measured = measure(path, given.repeat)
        except PenjingError as error:
            raise SystemExit(f"error {error}") from None
        for row in measured:
            rows.append(row)
            sys.stdout.write(
                f"{row['file']:20s} {row['coder']:9s} {row['weights']:11,} weights {row['bytes']:11,} bytes   "
                f"writes {row['write']:6.1f}, reads {row['read']:6.1f} million weights a second\n"
            )
            sys.stdout.flush()
    if given.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "python": platform.python_version()}
        given.json.write_text(json.dumps({**machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
