"""What a run has decided and finished, so that it can be stopped at any moment and go on to the very same end.

A run is a program that is simply run again. Whatever took a measurement or a long time goes through the journal under a key:
the first time it is done and written down, the next time it is read. Everything else is computed anew and comes out the same,
because randomness is derived from names (`training.seeding`), not from how far the program has come.

    journal.jsonl                   one line a decision: {"key": ..., "value": ...}
    trainings/<key>.safetensors     the state of a finished training
    trainings/<key>.unfinished.safetensors   the state after the last finished epoch of one under way
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from penjing.errors import RunError
from penjing.shapes import Json


class Journal:
    """The journal of one run.

    Args:
        folder: where it is kept; None keeps it in memory.
        accelerator: with several processes the first one decides and the others are told.
    """

    def __init__(self, folder: Path | None, accelerator: Accelerator) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.decisions: dict[str, Json] = {}
        self.replayed = 0
        if folder is not None:
            try:
                (folder / "trainings").mkdir(parents=True, exist_ok=True)
                self._read(folder / "journal.jsonl")
            except OSError as error:
                raise RunError(
                    f"{folder}: cannot be used ({error.strerror or error}). Get the rights to it."
                ) from error

    def decide(self, key: str, compute: Callable[[], Json]) -> Json:
        """The value under `key`: from the journal, else computed, written down and returned as it will be read back."""
        if key in self.decisions:
            self.replayed += 1
            return self.decisions[key]
        box: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                value = json.loads(json.dumps(compute()))
                self._write(key, value)
                box[0] = value
            except Exception as error:
                if self.accelerator.num_processes == 1:
                    raise
                box[1] = error
        if self.accelerator.num_processes > 1:
            broadcast_object_list(box)
            if box[1] is not None:
                raise box[1]
        self.decisions[key] = box[0]
        return box[0]

    def training(self, key: str) -> Path | None:
        """Where the state of the training `key` is kept, without its ending; None when nothing is kept."""
        return self.folder / "trainings" / key.replace("/", "--") if self.folder is not None else None

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        sound = 0
        content = path.read_bytes()
        for line in content.splitlines(keepends=True):
            try:
                entry = json.loads(line)
                if not line.endswith(b"\n"):
                    break
                self.decisions[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                break
            sound += len(line)
        if sound < len(content) and self.accelerator.is_main_process:
            os.truncate(path, sound)  # the line that was being written when the run was stopped

    def _write(self, key: str, value: Json) -> None:
        if self.folder is None:
            return
        path = self.folder / "journal.jsonl"
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(path, before)
            raise RunError(
                f"{path}: could not be written ({error.strerror or error}). Everything finished before is safe. "
                "Make room or get the rights, then go on with --resume."
            ) from error
