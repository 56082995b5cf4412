"""What packing a large checkpoint takes: time, and anonymous memory above an interpreter that has imported torch.

    python bench/pack.py [--gigabytes 0.5 1 2] [--folder FOLDER] [--json FILE]

A synthetic checkpoint of each size: a quarter of it is one tensor (500 MB of 2 GB), the rest are eleven more of float32,
bfloat16 and int64, and a bias each. It is packed without loss, with --step, --bits and --half, and unpacked, each in a process
of its own that looks at RssAnon in /proc/self/status every 2 ms: pages of files do not count, everything else does.
Required: at most three times the largest tensor and 300 MB. What is packed without loss must come back byte for byte.
"""

import argparse
import filecmp
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "step 0.1": {"step": 0.1},
    "bits 8": {"bits": 8},
    "half": {"half": True},
}
SHARES = (*(0.25,) * 1, *(0.1,) * 4, *(0.05,) * 5, *(0.05,) * 2)
"""Of the whole, by tensor; the last but one are bfloat16 and int64."""
ALLOWED = 300 * 10**6


def _tensors(n_bytes: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of each."""
    found = []
    for i, share in enumerate(SHARES):
        kind, size = ("BF16", 2) if i == len(SHARES) - 2 else ("I64", 8) if i == len(SHARES) - 1 else ("F32", 4)
        width = 4000
        found.append((f"layer{i}.weight", kind, (int(n_bytes * share / size / width), width)))
        found.append((f"layer{i}.bias", "F32", (width,)))
    return found


def _parts(kind: str, n: int, rng: np.random.Generator) -> Iterator[bytes]:
    """The numbers of a tensor, piece by piece: bell-shaped weights, as many wide as narrow rows."""
    for start in range(0, n, 1 << 20):
        part = min(1 << 20, n - start)
        if kind == "I64":
            yield rng.integers(0, 30_000, part).astype("<i8").tobytes()
            continue
        values = rng.standard_normal(part, dtype=np.float32) * np.float32(0.02 * 2.0 ** rng.integers(-2, 3))
        yield values.tobytes() if kind == "F32" else (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def make(path: Path, n_bytes: int) -> int:
    """Write the checkpoint. Returns: the bytes of its largest tensor."""
    rng = np.random.default_rng(0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = largest = 0
    size = {"F32": 4, "BF16": 2, "I64": 8}
    for name, kind, shape in _tensors(n_bytes):
        end = position + size[kind] * int(np.prod(shape))
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [position, end]}
        largest, position = max(largest, end - position), end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, kind, shape in _tensors(n_bytes):
            for part in _parts(kind, int(np.prod(shape)), rng):
                file.write(part)
    return largest


class _Watch:
    """The largest RssAnon while it runs, in bytes."""

    def __init__(self) -> None:
        self.largest, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.002):
            self.largest = max(self.largest, anonymous())


def anonymous() -> int:
    """RssAnon of this process in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def child(order: dict[str, Any]) -> None:
    """Pack or unpack; print seconds and bytes of memory."""
    import torch  # noqa: PLC0415  what comes before is what is not counted

    torch.set_num_threads(1)
    before = anonymous()
    from penjing.artifact import Packing, pack, unpack  # noqa: PLC0415

    begun, used = time.perf_counter(), time.process_time()
    with _Watch() as watch:
        if order["way"] is None:
            unpack(order["source"], order["target"])
        else:
            pack(order["source"], order["target"], Packing(**order["way"]))
        seconds = time.perf_counter() - begun
        used = time.process_time() - used
    print(json.dumps({"seconds": seconds, "processor_seconds": used, "memory": watch.largest - before}))


def _run(**order: Any) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(order)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(gigabytes: float, folder: Path) -> list[dict[str, Any]]:
    """One row for each way of one size."""
    source, packed, back = (folder / name for name in ("in.safetensors", "out.pj", "back.safetensors"))
    largest = make(source, int(gigabytes * 10**9))
    size = source.stat().st_size
    rows = []
    for name, way in WAYS.items():
        there = _run(source=str(source), target=str(packed), way=way)
        again = _run(source=str(packed), target=str(back), way=None)
        if name == "exact" and not filecmp.cmp(source, back, shallow=False):
            raise SystemExit("what was packed without loss did not come back")
        row = {
            "bytes": size,
            "largest": largest,
            "way": name,
            "packed": packed.stat().st_size,
            "pack": there,
            "unpack": again,
        }
        rows.append(row)
        allowed = 3 * largest + ALLOWED
        print(
            f"{size / 1e9:5.2f} GB  {name:9s} {row['packed'] / 1e9:5.2f} GB   "
            f"pack {there['seconds']:6.1f} s ({there['processor_seconds']:5.1f} of processor) {there['memory'] / 1e6:6.0f} MB  "
            f"unpack {again['seconds']:6.1f} s ({again['processor_seconds']:6.1f}) {again['memory'] / 1e6:7.0f} MB   "
            f"allowed {allowed / 1e6:.0f} MB{'' if max(there['memory'], again['memory']) <= allowed else '   TOO MUCH'}",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure, print a table, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--folder", type=Path, help="where the large files lie meanwhile; default: the system's")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    rows = []
    for gigabytes in given.gigabytes:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            rows += measure(gigabytes, Path(folder))
    if given.json:
        machine = {"machine": platform.machine(), "python": platform.python_version(), "cpus": os.cpu_count()}
        given.json.write_text(json.dumps({**machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
