"""State on the disk: whole or not at all, bit for bit."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from penjing.errors import RunError
from penjing.files import write_atomically
from penjing.training import Journal
from penjing.training.checkpoint import load_state, save_state


def test_nested_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {
        "weights": {7: {"a": torch.randn(3, 4).T, "codes": torch.arange(5, dtype=torch.uint8)}},
        "list": [1, 2.5, None, "text", True, (torch.tensor(float("nan")), [])],
        "half": torch.tensor([1.5, float("inf")], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "loss": 0.1 + 0.2,
    }
    save_state(tmp_path / "s", state)
    found = load_state(tmp_path / "s")
    assert list(found) == list(state) and list(found["weights"]) == [7]
    assert torch.equal(found["weights"][7]["a"], state["weights"][7]["a"])
    assert torch.equal(found["weights"][7]["codes"], torch.arange(5, dtype=torch.uint8))
    assert found["list"][:5] == [1, 2.5, None, "text", True]
    assert isinstance(found["list"][5], tuple) and found["list"][5][0].isnan() and found["list"][5][1] == []
    assert found["half"].dtype == torch.bfloat16 and torch.equal(found["half"], state["half"])
    assert found["empty"].shape == (0, 3)
    assert found["loss"] == 0.1 + 0.2


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(RunError, match="checkpoint is damaged"):
        load_state(tmp_path / "s")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"No space left on device.*--resume"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="could not be written"):
        write_atomically(tmp_path / "file" / "below", b"x")
    with pytest.raises(RunError, match="could not be written"):
        write_atomically(tmp_path, b"x")


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def refuse() -> object:
    raise AssertionError("decided again")


def test_the_journal_replays_and_ignores_a_line_cut_off(tmp_path: Path, accelerator: Accelerator) -> None:
    journal = Journal(tmp_path, accelerator)
    assert journal.decide("a", lambda: {"x": (1, 2)}) == {"x": [1, 2]}  # as it will be read back
    assert journal.decide("b", lambda: 0.1) == 0.1
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    again = Journal(tmp_path, accelerator)
    assert again.decide("a", refuse) == {"x": [1, 2]} and again.replayed == 1
    assert path.read_bytes() == whole.splitlines(keepends=True)[0]
    assert again.decide("b", lambda: 0.2) == 0.2
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_a_journal_on_a_full_disk_keeps_its_lines(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, accelerator)
    journal.decide("a", lambda: 1)
    before = (tmp_path / "journal.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            journal.decide("b", lambda: 2)
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    assert journal.decide("b", lambda: 3) == 3


def test_a_journal_in_memory_writes_nothing(tmp_path: Path, accelerator: Accelerator) -> None:
    journal = Journal(None, accelerator)
    assert journal.decide("a", lambda: 1) == 1 and journal.decide("a", refuse) == 1
    assert journal.training("x") is None
