"""The coverage table as a page: requirements and whether they are met, sums, then a row for every network."""

import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]
_WORK = ("trace", "plan", "cut")
_CHECKS = ("loads", "same_tensors", "same_answer", "cuts_again", "trains")
_ABOUT = """\
Networks with random weights: every torchvision classification network of at most 100 M parameters, names of timm, and
transformers of small configurations. Each is traced, loses half of the channels of every group (those with the smallest
weights), is saved, and loaded elsewhere. `make coverage-graph` makes this page and `coverage.json`, which has everything."""
_RIVAL = """\
Seconds are of the processor unless said otherwise, because the machine has other work too; imports are not counted.
torch-pruning runs in the same run, in turns with ours, as its README shows it: `MagnitudePruner` at 50 %, the classifier's
outputs kept. It proves nothing; a forward pass works afterwards on {working}. Where it takes longer than {torch_pruning_s} s
or more than {memory_gib} GiB it is stopped and counted with the time until then."""
_COLUMNS = """\
- parameters: of the traced network, in millions. What a forward pass in evaluation mode never uses is not in it.
- proof: largest relative difference in float64 between the cut network and the whole one with zeros in the place of the
  channels, at most 1e-9 for all groups together. Effect: how much the removal changes the answer, relative,
  at least 1e-6.
- survivors: nodes (norms, means) whose statistics are over the channels that stay. There the function is another one.
- reach: share of the parameters that are in a tensor of which something was cut.
- removed: share of the parameters, and of the multiply-accumulates, that are gone.
- file: size of the saved cut network (in parentheses: four bytes for each parameter that is left), and of the graph in it.
- elsewhere: in a fresh process that cannot import the library, the file loads, has bit-identical tensors, gives the
  bit-identical answer, is cut in half again under proof, and trains a step with finite gradients; else what fails.
- own class: the user's own model could be cut as well and answers as the network does."""
_HEADER = (
    *("network", "parameters, M", "proof", "effect", "survivors", "reach", "removed: parameters, MACs"),
    *("trace, plan, prove, cut, s", "file, graph", "elsewhere", "own class"),
)


def requirements(records: Sequence[Record], n_listed: int) -> list[Record]:
    """What is required, what was found, and whether that is enough.

    Args:
        n_listed: networks that the table should have.
    """
    timm = [r.get("reach", 0.0) for r in records if r["library"] == "timm"]
    others = _reaches(r for r in records if r["library"] != "timm")
    enough = sum(reach >= 0.5 for reach in timm)
    removed = statistics.median([r.get("removed", 0.0) for r in records] or [0.0])
    plan, slowest = max(((r["seconds"].get("plan", 0.0), r["name"]) for r in records), default=(0.0, ""))
    every, _, working, _ = compared(records)
    states = len({r["source"] for r in records})
    found = (
        (
            "All networks measured, with the same code",
            f"{len(records)} of {n_listed}, {states} state(s) of it",
            (len(records), states) == (n_listed, 1),
        ),
        _everywhere("No exception in any step", records, [r["name"] for r in records if r["failures"]]),
        _everywhere(
            "The proof holds for every network",
            records,
            [r["name"] for r in records if not r.get("proof", {}).get("holds")],
        ),
        _everywhere("Every file works elsewhere", records, [r["name"] for r in records if _wrong(r)]),
        ("Reach at least 50 % in every torchvision and transformers family", *_least(others)),
        ("Reach at least 50 % for 90 % of the timm names", f"{enough} of {len(timm)}", enough >= 0.9 * len(timm)),
        ("Median of the parameters removed at least 45 %", _percent(removed), removed >= 0.45),
        (
            "torchvision, proof included, not slower than torch-pruning",
            f"{_against(every)}; on the {working['n']} networks where its result runs {_against(working)}",
            every["with_proof_s"] <= every["torch_pruning_s"],
        ),
        ("Planning at most 1 s a network", f"longest: {plan:.2f} s ({slowest})", plan <= 1),
    )
    return [{"what": what, "found": text, "met": met} for what, text, met in found]


def compared(records: Sequence[Record]) -> list[Record]:
    """Sums of seconds over the torchvision list, ours and torch-pruning's: of the processor, and by the clock."""
    rows = [r for r in records if "torch_pruning" in r]
    working = [r for r in rows if r["torch_pruning"]["forward"]]
    return [
        {
            "networks": name,
            "n": len(chosen),
            "time": time,
            "without_proof_s": sum(r[key].get(step, 0.0) for r in chosen for step in _WORK),
            "with_proof_s": sum(r[key].get(step, 0.0) for r in chosen for step in (*_WORK, "prove")),
            "torch_pruning_s": sum(r["torch_pruning"][key] for r in chosen),
        }
        for name, chosen in (("all", rows), ("where torch-pruning's result runs", working))
        for key, time in (("seconds", "processor"), ("wall", "clock"))
    ]


def write_page(table: Record) -> str:
    """The page in Markdown."""
    records, machine = table["networks"], table["machine"]
    rivals = [r["torch_pruning"] for r in records if "torch_pruning" in r]
    memory_gib = machine["memory_bytes"] / 2**30
    working = f"{sum(rival['forward'] for rival in rivals)} of {len(rivals)}"
    load = statistics.median([r.get("load_average", 0.0) for r in records] or [0.0])
    versions = ", ".join(f"{name} {number}" for name, number in table["versions"].items())
    required = [(r["what"], r["found"], "yes" if r["met"] else "**no**") for r in table["requirements"]]
    sums = [
        (
            t["networks"],
            t["n"],
            t["time"],
            *(f"{t[f'{k}_s']:.1f} s" for k in ("without_proof", "with_proof", "torch_pruning")),
        )
        for t in compared(records)
    ]
    parts = [
        "# Coverage",
        _ABOUT,
        _grid(("required", "found", "met"), required),
        _grid(("torchvision networks", "n", "time", "trace, plan, cut", "the same and prove", "torch-pruning"), sums),
        _RIVAL.format(working=working, **table["limits"]),
        "Least reach of a family: " + ", ".join(f"{f} {_percent(x)}" for f, x in _reaches(records).items()) + ".",
        f"{table['date']}; {machine['processor']}, {machine['cores']} cores, {memory_gib:.0f} GiB, one thread, one process"
        f" at a time; median load average when a network began: {load:.1f}. {versions}.",
        *_lists(records),
        "## Columns\n\n" + _COLUMNS,
    ]
    for library in dict.fromkeys(r["library"] for r in records):
        rows = sorted((r for r in records if r["library"] == library), key=lambda r: r["name"])
        extra = ("torch-pruning",) if library == "torchvision" else ()
        parts += [f"## {library}", _grid((*_HEADER, *extra), (_row(r) for r in rows))]
    return "\n\n".join(parts) + "\n"


def _row(r: Record) -> list[str]:
    proof, cells = r.get("proof"), [r["name"]]
    if proof is None or "reach" not in r:
        cells += ["**failed**", *[""] * (len(_HEADER) - 2)]
    else:
        wrong = _wrong(r)
        whole = 4 * r["parameters_left"] / 1e6
        file = (
            f"{r['file_bytes'] / 1e6:.2f} MB ({whole:.2f}), {r['graph_bytes'] / 1e3:.1f} kB"
            if "graph_bytes" in r
            else "**failed**"
        )
        cells += [
            f"{r['traced_parameters'] / 1e6:.2f}",
            f"{proof['error']:.0e}" if proof["holds"] else "**fails**",
            f"{proof['effect']:.2g}",
            str(proof["survivors"]),
            _percent(r["reach"]),
            f"{_percent(r['removed'])}, {_percent(r['macs_removed'])}",
            ", ".join(f"{r['seconds'][step]:.2f}" for step in ("trace", "plan", "prove", "cut")),
            file,
            f"**not: {', '.join(wrong)}**" if wrong else "yes",
            {True: "yes", False: "no"}.get(r.get("own_class", ""), "**failed**"),
        ]
    if rival := r.get("torch_pruning"):
        cells.append(f"{rival['seconds']:.2f} s{'' if rival['forward'] else ', fails'}")
    return cells


def _lists(records: Sequence[Record]) -> list[str]:
    """What went wrong, and what stays as it is for a reason."""
    failures = [f"- {r['name']}, {step}: {reason[:300]}" for r in records for step, reason in r["failures"].items()]
    unproved = [
        f"- {r['name']}, not proved and so not cut: {g}: {why[:300]}"
        for r in records
        for g, why in r.get("proof", {}).get("unproved", {}).items()
    ]
    whole: dict[str, list[str]] = {}
    foreign: dict[str, list[str]] = {}
    for r in records:
        for reason in dict.fromkeys(re.sub(r"^\S+ \((\w+)\)", r"\1", reason) for reason in r.get("kept", {})):
            whole.setdefault(reason, []).append(r["name"])  # of a node, only its operation
        if r.get("own_class") is False:
            foreign.setdefault(r["why_not"][:300], []).append(r["name"])
    lists = (
        ("Failures", failures + unproved),
        ("Layers whose outputs stay whole", [f"- {reason}: {_some(names)}" for reason, names in whole.items()]),
        ("Why the own class could not be cut", [f"- {reason}: {_some(names)}" for reason, names in foreign.items()]),
    )
    return [f"## {title}\n\n" + "\n".join(lines) for title, lines in lists if lines]


def _against(sums: Record) -> str:
    return f"{sums['with_proof_s']:.1f} s against {sums['torch_pruning_s']:.1f} s"


def _everywhere(what: str, records: Sequence[Record], failing: Sequence[str]) -> tuple[str, str, bool]:
    return (
        what,
        f"{len(records) - len(failing)} of {len(records)}" + (f" (not: {_some(failing)})" if failing else ""),
        not failing,
    )


def _least(reaches: dict[str, float]) -> tuple[str, bool]:
    family, reach = next(iter(reaches.items()), ("none", 0.0))
    return f"least: {_percent(reach)} ({family})", reach >= 0.5


def _reaches(records: Iterable[Record]) -> dict[str, float]:
    """The least reach of every family, the least first."""
    least: dict[str, float] = {}
    for r in records:
        least[r["family"]] = min(least.get(r["family"], 1.0), r.get("reach", 0.0))
    return dict(sorted(least.items(), key=lambda item: item[1]))


def _grid(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (header, ["---"] * len(header), *rows))


def _wrong(r: Record) -> list[str]:
    return [check.replace("_", " ") for check in _CHECKS if not r.get("elsewhere", {}).get(check)]


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
