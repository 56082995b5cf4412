"""Hostile files: each must be refused with an ArtifactError, or give networks and tensors of the shapes that it declares.

    python bench/mutations.py [--count 20000] [--seed 0] [--json FILE]

The golden files, which hold every codec, coder, module and operation, are changed: bytes of the whole file, with the checksum
as it was; or of the graph (unpacked), the heads, the stream, the blobs, with all lengths and the checksum right again: bits
flipped, bytes set, inserted, deleted, repeated; numbers made huge; parts of other files put in; sections swapped. What can
still be read is read completely, plainly or for training. Every file may take one second of the processor and `MOST_MEMORY`
above what the interpreter had; an audit hook stops what would execute, import or connect. Processes of their own do the work,
so that a crash is seen.
"""

import argparse
import io
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penjing.artifact import Artifact
from penjing.artifact.container import LISTING, read_frame
from penjing.artifact.listing import _MAX_BYTES
from penjing.artifact.manifest import _MAX_MANIFEST, unpack_bytes
from penjing.artifact.slots import slots
from penjing.entropy import ByteWriter
from penjing.errors import ArtifactError

GOLDEN = Path(__file__).parent.parent / "tests" / "artifact" / "golden"
MOST_SECONDS, MOST_MEMORY = 1.0, 1 << 30
"""Of memory: 64 numbers a byte of a file that counts as at least 512 KiB, eight bytes each, four times over while decoded."""
_PART = 500
_FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
)
_FORBIDDEN += ("pickle.find_class", "ctypes.dlopen", "open")


@dataclass(frozen=True)
class Parts:
    """A file taken apart: its sections, the graph unpacked behind the byte that says what it is."""

    mark: bytes
    sections: tuple[bytes, bytes, bytes, bytes]

    def together(self) -> bytes:
        """The file, with right lengths and checksum."""
        graph, *rest = self.sections
        graph = self.mark + b"\0" + graph
        writer = ByteWriter()
        writer.raw(b"\x8ePJ\x01")
        for section in (graph, *rest[:2]):
            writer.uvarint(len(section))
        for section in (graph, *rest):
            writer.raw(section)
        return signed(writer.finish())


def signed(body: bytes) -> bytes:
    """With the right checksum."""
    return body + struct.pack("<I", zlib.crc32(body))


@cache
def golden() -> tuple[tuple[str, bytes, Parts], ...]:
    """Name, content and parts of the files that are changed."""
    found = []
    for path in sorted(GOLDEN.glob("*.pj")):
        content = path.read_bytes()
        frame = read_frame(io.BytesIO(content), path.name)
        mark = LISTING if frame.graph[:1] == LISTING else b""
        graph = unpack_bytes(frame.graph[len(mark) :], _MAX_BYTES if mark else _MAX_MANIFEST)
        blobs = bytes(frame.blobs.take(frame.blobs.n_left).read())
        found.append((path.stem, content, Parts(mark, (graph, frame.heads, frame.stream, blobs))))
    return tuple(found)


def _huge(rng: np.random.Generator) -> bytes:
    """A varint at an edge."""
    writer = ByteWriter()
    writer.uvarint(
        max(0, (1 << int(rng.choice([7, 8, 15, 16, 20, 24, 28, 31, 32, 40, 48, 62]))) + int(rng.integers(-1, 2)))
    )
    return writer.finish()


def changed(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """One to three changes."""
    found = bytearray(data or b"\0")
    for _ in range(int(rng.integers(1, 4))):
        at, way = int(rng.integers(len(found))), int(rng.integers(9))
        if way == 0:
            found[at] ^= 1 << int(rng.integers(8))
        elif way == 1:
            found[at] = int(rng.choice([0, 1, 2, 127, 128, 200, 207, 208, 210, 255, int(rng.integers(256))]))
        elif way == 2:
            found[at:at] = rng.bytes(int(rng.integers(1, 5)))
        elif way == 3:
            del found[at : at + int(rng.integers(1, 5))]
        elif way == 4:
            found[at:at] = found[at : at + int(rng.integers(1, 40))] * int(rng.choice([1, 1, 2, 100]))
        elif way == 5:
            del found[at + 1 :]
        elif way == 6:
            found[at : at + 1] = _huge(rng)
        elif way == 7:
            other = others[int(rng.integers(len(others)))] or b"\0"
            start = int(rng.integers(len(other)))
            found[at : at + int(rng.integers(20))] = other[start : start + int(rng.integers(1, 60))]
        else:
            found[at : at + 8] = bytes(reversed(found[at : at + 8]))
        found = found or bytearray(1)
    return bytes(found)


def mutation(seed: int, number: int) -> tuple[str, bytes]:
    """The file of that number, and what was done to it."""
    rng = np.random.default_rng([seed, number])
    files = golden()
    name, content, parts = files[int(rng.integers(len(files)))]
    way = number % 8
    if way == 0:
        return f"{name}: stale", changed(content, rng, [other for _, other, _ in files])
    if way == 1:
        return f"{name}: whole", signed(changed(content[:-4], rng, [other for _, other, _ in files]))
    if way == 2:
        other = files[int(rng.integers(len(files)))][2]
        swapped = int(rng.integers(4))
        sections = tuple(other.sections[i] if i == swapped else part for i, part in enumerate(parts.sections))
        mark = other.mark if swapped == 0 else parts.mark
        return f"{name}: section {swapped} of another", Parts(mark, sections).together()  # type: ignore[arg-type]
    number_of = (0, 0, 1, 1, 1 + int(rng.integers(3)))[way - 3]
    sections = tuple(
        changed(part, rng, [p.sections[i] for _, _, p in files]) if i == number_of else part
        for i, part in enumerate(parts.sections)
    )
    return f"{name}: section {number_of}", Parts(parts.mark, sections).together()  # type: ignore[arg-type]


def read(content: bytes, *, for_training: bool) -> bool:
    """Read all of a file. Returns: whether it was sound. Raises: whatever is a defect."""
    try:
        with Artifact(io.BytesIO(content)) as artifact:
            shapes = {name: artifact.entry(name).shape for name in artifact.names}
            if artifact.tensors is not None:
                for name, shape in shapes.items():
                    value = artifact.tensor(name)
                    if tuple(value.shape) != shape or value.dtype != artifact.entry(name).dtype:
                        raise AssertionError(f"{name} is {value.dtype} {tuple(value.shape)}, not as declared")
                return True
            networks = artifact.networks(for_training=for_training)
    except ArtifactError:
        return False
    for place in slots(networks):
        value = place.value()
        if tuple(value.shape) != shapes[place.name] or value.device.type != "cpu":
            raise AssertionError(
                f"{place.name} is {tuple(value.shape)} on {value.device}, declared as {shapes[place.name]}"
            )
    return True


class _Audit:
    """Refuses what a file has no business to cause, while it is on."""

    def __init__(self) -> None:
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in _FORBIDDEN and not (event == "open" and str(arguments[0]).startswith("/proc/self")):
            self.on = False
            raise AssertionError(f"the file caused {event} {arguments!r:.200}")


def _memory(key: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def child(seed: int, first: int, count: int, note: Path) -> None:
    """Read `count` files; print what came of them as JSON."""
    torch.set_num_threads(1)
    for _, content, _ in golden():  # what is only imported or compiled once is done
        assert read(content, for_training=False) and read(content, for_training=True)
    audit = _Audit()
    outcomes: Counter[str] = Counter()
    defects, slowest, largest = [], (0.0, -1), (0, -1)
    for number in range(first, first + count):
        note.write_text(str(number))
        what, content = mutation(seed, number)
        unchanged = any(content == other for _, other, _ in golden())
        Path("/proc/self/clear_refs").write_text("5")
        before, begun = _memory("VmRSS"), time.process_time()
        audit.on = True
        try:
            sound = read(content, for_training=bool(number // 8 % 2))
        except BaseException:
            sound = None
            defects.append({"number": number, "what": what, "error": traceback.format_exc(limit=-4)})
        audit.on = False
        seconds, memory = time.process_time() - begun, _memory("VmHWM") - before
        slowest, largest = max(slowest, (seconds, number)), max(largest, (memory, number))
        if sound and number % 8 == 0 and not unchanged:
            defects.append({"number": number, "what": what, "error": "a stale checksum was not told"})
        if seconds > MOST_SECONDS or memory > MOST_MEMORY:
            defects.append({"number": number, "what": what, "error": f"{seconds:.2f} s, {memory / 1e6:.0f} MB"})
        outcomes["sound" if sound else "refused" if sound is not None else "defect"] += 1
    print(json.dumps({"outcomes": outcomes, "defects": defects, "slowest": slowest, "largest": largest}))


def main() -> None:
    """Read all, print counts and the worst, exit with 1 where there is a defect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child[:3], Path(given.child[3]))
        return
    outcomes: Counter[str] = Counter()
    defects: list[dict[str, Any]] = []
    slowest, largest = (0.0, -1), (0, -1)
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, "number")
        first = 0
        while first < given.count:
            count = min(_PART, given.count - first)
            order = json.dumps([given.seed, first, count, str(note)])
            done = subprocess.run([sys.executable, __file__, "--child", order], capture_output=True, text=True)
            if done.returncode:
                number = int(note.read_text())
                defects.append({"number": number, "what": f"exit code {done.returncode}", "error": done.stderr[-2000:]})
                count = number + 1 - first
            else:
                found = json.loads(done.stdout)
                outcomes.update(found["outcomes"])
                defects += found["defects"]
                slowest = max(slowest, tuple(found["slowest"]))
                largest = max(largest, tuple(found["largest"]))
            first += count
            print(f"{first} of {given.count}: {dict(outcomes)}, {len(defects)} defects", file=sys.stderr, flush=True)
    for defect in defects:
        print(f"--- number {defect['number']}, {defect['what']}\n{defect['error']}")
    print(
        f"{given.count} files, seed {given.seed}: {outcomes['refused']} refused, {outcomes['sound']} sound, "
        f"{len(defects)} defects; slowest {slowest[0]:.2f} s (number {slowest[1]}), "
        f"most memory {largest[0] / 1e6:.0f} MB (number {largest[1]})"
    )
    if given.json:
        machine = {"machine": platform.machine(), "python": platform.python_version(), "cpus": os.cpu_count()}
        figures = {**machine, "count": given.count, "seed": given.seed, "outcomes": outcomes, "defects": defects}
        given.json.write_text(json.dumps({**figures, "slowest": slowest, "largest": largest}, indent=1))
    raise SystemExit(bool(defects))


if __name__ == "__main__":
    main()
