"""Measure one network of the table, in a process of its own: python measure.py LIBRARY NAME RECORD.json.

The record has what every step found, and the exception of every step that failed. The steps up to `elsewhere` need one
another, so the first failure ends them.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import penjing as pj
from networks import Inputs, find, n_parameters, shim
from penjing import artifact, pruning
from penjing.graph import Grouping, Network, channel_groups, provable, remove_channels
from penjing.graph.proof import TOLERANCE
from penjing.measurement.macs import macs_by_node
from penjing.pruning import magnitude_scores

SPARSITY = 0.5
LEAST_EFFECT = 1e-6
"""Relative change of the answer below which a proof has not seen the removal."""


def half(network: Network, grouping: Grouping) -> dict[str, list[int]]:
    """The channels with the smallest weights, half of every group; a group of one channel stays."""
    return {
        group.name: sorted(magnitude_scores(network, group).argsort(stable=True)[: group.n_channels // 2].tolist())
        for group in grouping.groups
        if group.n_channels > 1
    }


def answer(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors of what a model answers, in order."""
    found = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [
        leaf
        for leaf in pytree.tree_leaves(dict(found) if isinstance(found, dict) else found)
        if isinstance(leaf, Tensor)
    ]


def digests(model: nn.Module) -> dict[str, str]:
    """By name, a hash of every tensor's type, shape and bytes."""
    found = {}
    for name, tensor in _tensors(model):
        data = tensor.detach().numpy().tobytes()
        found[name] = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + data).hexdigest()
    return found


def text_of(error: BaseException) -> str:
    """The exception as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class Case:
    """One network on its way through the steps; each adds to `record`."""

    def __init__(self, library: str, name: str) -> None:
        self.entry = find(library, name)
        torch.manual_seed(0)
        self.model, self.inputs = self.entry.make()
        self.seconds: dict[str, float] = {}  # of the processor, which other work on the machine changes little
        self.wall: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self.record: dict[str, Any] = {
            "library": library,
            "family": self.entry.family,
            "name": name,
            "load_average": os.getloadavg()[0],
            "seconds": self.seconds,
            "wall": self.wall,
            "failures": self.failures,
            "parameters": n_parameters(self.model),
        }

    def run(self) -> dict[str, Any]:
        """All steps, and what came of them."""
        steps = (self.trace, self.plan, self.prove, self.cut, self.count, self.save, self.elsewhere)
        all(self._done(step) for step in steps)
        self._done(self.own_class)
        return self.record

    def _done(self, step: Any) -> bool:
        begun, begun_wall = time.process_time(), time.perf_counter()
        try:
            step()
        except Exception as error:
            self.failures[step.__name__] = text_of(error)
        self.seconds[step.__name__] = time.process_time() - begun
        self.wall[step.__name__] = time.perf_counter() - begun_wall
        return step.__name__ not in self.failures

    def trace(self) -> None:
        self.network = pj.trace(self.model, self.inputs)

    def plan(self) -> None:
        self.grouping = channel_groups(self.network)
        self.chosen = half(self.network, self.grouping)
        self.removal = self.grouping.removal(self.chosen)

    def prove(self) -> None:
        self.chosen, left, proof = provable(self.network, self.grouping, self.chosen)
        self.removal = self.grouping.removal(self.chosen)
        self.record["proof"] = {
            "holds": not left and proof.error <= TOLERANCE and proof.effect >= LEAST_EFFECT,
            "error": proof.error,
            "effect": proof.effect,
            "unproved": left,
            "survivors": len(proof.changed),
        }

    def cut(self) -> None:
        self.small = remove_channels(self.network, self.removal)

    def count(self) -> None:
        tensors = {(piece.path, piece.name) for piece in self.removal.slices}
        cut = {
            id(p): p.numel()
            for p in (getattr(self.network.get_submodule(a), b) for a, b in tensors)
            if isinstance(p, nn.Parameter)
        }
        total, left = n_parameters(self.network), n_parameters(self.small)
        macs, macs_left = (sum(macs_by_node(network).values()) for network in (self.network, self.small))
        kept: dict[str, list[str]] = {}
        for path, reason in self.grouping.kept.items():
            kept.setdefault(reason, []).append(path)
        self.record |= {
            "groups": len(self.grouping.groups),
            "kept": kept,
            "traced_parameters": total,
            "parameters_left": left,
            "reach": sum(cut.values()) / total,
            "removed": 1 - left / total,
            "macs_removed": 1 - macs_left / macs if macs else 0.0,
        }

    def save(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="penjing-coverage-")
        self.path = Path(self.folder.name) / "small.pj"
        artifact.save(self.small, self.path)
        self.record["file_bytes"] = self.path.stat().st_size
        self.record["graph_bytes"] = artifact.dissect(self.path).graph_bytes

    def elsewhere(self) -> None:
        with torch.no_grad():
            answers = answer(self.small, self.inputs)
        expected = self.path.with_name("expected.pt")
        torch.save({"inputs": self.inputs, "answers": answers, "digests": digests(self.small)}, expected)
        command = [sys.executable, str(Path(__file__).with_name("elsewhere.py")), str(self.path), str(expected)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.folder.cleanup()
        if done.returncode:
            raise RuntimeError(f"the process ended with {done.returncode}: {done.stderr[-500:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        self.failures |= {f"elsewhere: {step}": reason for step, reason in found.pop("failures").items()}
        self.record["elsewhere"] = found

    def own_class(self) -> None:
        pruned = pruning.prune_channels(self.model, self.inputs, sparsity=SPARSITY)
        self.record["own_class"], self.record["why_not"] = pruned.own_class, pruned.why_not
        with torch.no_grad():
            pairs = zip(
                answer(pruned.model.eval(), self.inputs), answer(pruned.network.eval(), self.inputs), strict=True
            )
            if not all(
                torch.allclose(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))
                for one, other in pairs
            ):
                raise RuntimeError("the model and the network that came with it answer differently.")


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def main() -> None:
    """Measure and write the record."""
    library, name, path = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    shim()
    importlib.import_module(library)
    pj.trace(nn.Sequential(nn.Conv2d(3, 2, 1)), (torch.randn(2, 3, 4, 4),))  # imports what torch.export imports late
    Path(path).write_text(json.dumps(Case(library, name).run()), encoding="utf-8")


if __name__ == "__main__":
    main()
