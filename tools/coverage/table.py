"""Make the coverage table: one network after the other, each in processes of its own, one thread.

A record is kept in RECORDS as soon as it is there, so what was interrupted goes on where it stopped; --fresh measures anew.
"""

import argparse
import datetime
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

import penjing
from networks import LIBRARIES, Entry, entries, shim
from page import requirements, write_page
from penjing.recipe.machine import machine
from penjing.training.progress import Live

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDS = ROOT / "runs" / "coverage.jsonl"
LIMIT, RIVAL_LIMIT = 1800, 120
"""Seconds a network may take: ours in all its steps, torch-pruning's pruning alone, of the processor."""
MEMORY_GIB = 16
"""What a process may take; torch-pruning takes all there is for some networks."""
_SLOWER = 5  # how many times as long it may take by the clock, because the machine has other work
_VERSIONS = ("torch", "torchvision", "timm", "transformers", "torch-pruning", "numpy")

Record = dict[str, Any]


def main() -> int:
    """Measure what is missing, write the table; 1 if a requirement is not met."""
    options = _options()
    shim()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GIB << 30, MEMORY_GIB << 30))  # children inherit it
    everything = list(entries())
    asked = [e for e in entries(options.libraries) if any(fnmatchcase(e.name, pattern) for pattern in options.only)]
    records = _stored()
    todo = [e for e in asked if options.fresh or (e.library, e.name) not in records]
    live = Live()
    with live.bar("coverage", len(todo)) as bar:
        for entry in todo:
            records[entry.library, entry.name] = record = _measured(entry)
            RECORDS.parent.mkdir(exist_ok=True)
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            bar.advance(info=entry.name)
            for step, reason in record["failures"].items():
                live.say(f"{entry.library} {entry.name}: {step}: {reason[:200]}")
    table = _table([records[key] for e in everything if (key := (e.library, e.name)) in records], len(everything))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "coverage.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    (options.out / "coverage.md").write_text(write_page(table), encoding="utf-8")
    live.say(f"{options.out / 'coverage.md'} is written.")
    return int(not all(requirement["met"] for requirement in table["requirements"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make docs/coverage.md. The rest of the table comes from earlier runs."
    )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="networks to measure: names or globs")
    parser.add_argument("--libraries", nargs="+", default=LIBRARIES, choices=LIBRARIES)
    parser.add_argument("--fresh", action="store_true", help="measure anew what an earlier run has measured")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder for coverage.json and coverage.md")
    return parser.parse_args()


def _stored() -> dict[tuple[str, str], Record]:
    """The last record of every network."""
    if not RECORDS.exists():
        return {}
    records = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    return {(record["library"], record["name"]): record for record in records}


def _measured(entry: Entry) -> Record:
    record: Record = {"library": entry.library, "family": entry.family, "name": entry.name, "seconds": {}, "wall": {}}
    record |= _process("measure.py", entry, LIMIT)
    if entry.library == "torchvision":
        record["torch_pruning"] = {"seconds": 0.0, "wall": 0.0, "forward": False} | _process(
            "rival.py", entry, RIVAL_LIMIT
        )
    return record | {"source": _source()}


def _process(script: str, entry: Entry, limit: int) -> Record:
    """What a script wrote about a network; where it died, how."""
    with tempfile.TemporaryDirectory(prefix="penjing-coverage-") as folder:
        path = Path(folder) / "record.json"
        command = [sys.executable, str(HERE / script), entry.library, entry.name, str(path)]
        command += [str(limit)] if script == "rival.py" else []
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TMPDIR": folder}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_SLOWER * limit, env=environment
            )
            if done.returncode == 0:
                found: Record = json.loads(path.read_text(encoding="utf-8"))
                return found
            reason = f"the process ended with {done.returncode}: {done.stderr[-500:]}"
        except subprocess.TimeoutExpired:
            reason = f"stopped after {_SLOWER * limit} s"
    return {"failures": {"process": reason}} if script == "measure.py" else {"failure": reason}


def _source() -> str:
    """A hash of the code that is measured."""
    files = sorted((ROOT / "src").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _table(records: list[Record], n_listed: int) -> Record:
    import torch  # noqa: PLC0415  # nothing else here needs it

    found = machine(torch.device("cpu"))
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": {name: found[name] for name in ("processor", "cores", "memory_bytes")},
        "limits": {"torch_pruning_s": RIVAL_LIMIT, "memory_gib": MEMORY_GIB},
        "versions": {"python": sys.version.split()[0], "penjing": penjing.__version__}
        | {n: version(n) for n in _VERSIONS},
        "requirements": requirements(records, n_listed),
        "networks": records,
    }


if __name__ == "__main__":
    sys.exit(main())
