"""Parts of a claim: what one arm of one seed measured, kept in a file of its own as soon as it is there.

seed 0: arm, arm, arm ──┐
seed 1: arm, arm, arm ──┼── verdict        seeds know nothing of each other: several processes can each take one
seed 2: arm, arm, arm ──┘
"""

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as connections_with_news
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from penjing.errors import PenjingError, RunError
from penjing.files import write_atomically
from penjing.papers.claim import Claim, Figures, Profile
from penjing.papers.laboratory import Laboratory
from penjing.recipe.machine import machine
from penjing.training.progress import Reporter, Silent
from penjing.training.seeding import derive_seed, seed_everything

_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class _Told:
    claim: str
    profile: Profile
    data: Path | None
    folder: Path
    device: torch.device | None
    precision: str
    ends: float


@dataclass(frozen=True)
class Work:
    """What makes the parts of a claim, whatever the seed.

    Attributes:
        folder: where parts are kept, of these settings, this precision and this code.
        until: by the machine's monotonic clock, when no new part is begun.
    """

    claim: Claim
    profile: Profile
    data: Path | None
    folder: Path
    device: torch.device | None
    precision: str
    until: float

    def told(self) -> _Told:
        """For another process: claims hold functions without names, and its monotonic clock may be another."""
        ends = time.time() + self.until - time.monotonic()
        return _Told(self.claim.name, self.profile, self.data, self.folder, self.device, self.precision, ends)

    def path(self, seed: int, arm: str) -> Path:
        """Where a part is kept."""
        return self.folder / f"seed-{seed}-{re.sub('[^a-zA-Z0-9.]+', '-', arm)}.json"

    def carry_out(
        self, seed: int, reporter: Reporter, done: Callable[[str], None] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Run what is missing of a seed. Returns: its parts by arm."""
        settings = self.claim.settings[self.profile]
        laboratory = Laboratory(
            seed, folder=self.folder, data=self.data, device=self.device, precision=self.precision, reporter=reporter
        )
        parts: dict[str, dict[str, Any]] = {}
        for arm in self.claim.arms(settings):
            path = self.path(seed, arm)
            if not path.exists():
                if time.monotonic() > self.until:
                    raise RunError(
                        f"reproduce: {self.claim.name}: time is up at seed {seed}, {arm}. What is finished is kept in "
                        f"{self.folder}; the same command goes on."
                    )
                before = {name: part["figures"] for name, part in parts.items()}
                part = _part(self.claim, laboratory, arm, settings, before)
                write_atomically(path, (json.dumps(part) + "\n").encode())
            parts[arm] = _read_part(path)
            if done is not None:
                done(f"seed {seed}, {arm}")
        return parts


def _part(claim: Claim, laboratory: Laboratory, arm: str, settings: Any, before: dict[str, Figures]) -> dict[str, Any]:
    begun = time.monotonic()
    laboratory.key = f"{claim.name} {arm}"
    seed_everything(derive_seed(laboratory.seed, claim.name, arm))
    figures = claim.measure(laboratory, arm, settings, before)
    found = machine(laboratory.accelerator.device)
    return {
        "seed": laboratory.seed,
        "arm": arm,
        "figures": json.loads(json.dumps(figures)),
        "seconds": round(time.monotonic() - begun, 2),
        "machine": {name: found[name] for name in ("processor", "cores", "memory_bytes", "threads", "device")},
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _read_part(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except ValueError:
        raise RunError(
            f"{path}: this record is damaged. Delete it; the same command then runs that part again."
        ) from None


def side_by_side(work: Work, seeds: Sequence[int], workers: int, done: Callable[[str], None]) -> None:
    """Run what is missing of several seeds, each in a process of its own, so many at a time.

    Raises: what a seed raises, RunError where a process died; the other processes are ended then, finished parts are kept.
    """
    context, threads = get_context("spawn"), torch.get_num_threads()
    waiting, running = list(seeds), dict[Connection, BaseProcess]()
    missing = [(seed, arm) for seed in seeds for arm in work.claim.arms(work.claim.settings[work.profile])]
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                ours, theirs = context.Pipe(duplex=False)
                running[ours] = context.Process(target=_in_process, args=(theirs, threads, work.told(), waiting.pop(0)))
                running[ours].start()
                theirs.close()
            for connection in connections_with_news(list(running), _LOOK_SECONDS):
                assert isinstance(connection, Connection)
                process = running[connection]
                error = _last_word(connection)
                process.join()
                del running[connection]
                if error is not None:
                    raise error
                if process.exitcode != 0:
                    raise RunError(
                        f"reproduce: {work.claim.name}: a process ended with code {process.exitcode}, often for want of "
                        f"memory. What is finished is kept in {work.folder}; the same command with fewer workers goes on."
                    )
            for seed, arm in [part for part in missing if work.path(*part).exists()]:
                missing.remove((seed, arm))
                done(f"seed {seed}, {arm}")
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _in_process(connection: Connection, threads: int, told: _Told, seed: int) -> None:
    """A seed in a process of its own; an error that the user should see goes back as it is."""
    from penjing.papers import claim_named  # noqa: PLC0415  it is made of modules that need this one

    torch.set_num_threads(threads)
    until = time.monotonic() + told.ends - time.time()
    work = Work(claim_named(told.claim), told.profile, told.data, told.folder, told.device, told.precision, until)
    try:
        work.carry_out(seed, Silent())
    except PenjingError as error:
        connection.send(error)
    except KeyboardInterrupt:  # the first process says so
        pass


def _last_word(connection: Connection) -> PenjingError | None:
    try:
        error: PenjingError = connection.recv()
    except EOFError:
        return None
    return error
