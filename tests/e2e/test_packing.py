"""`penjing pack`, `unpack`, and --sha256 on what reads artifacts."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from penjing.artifact import save
from penjing.cli.main import app
from penjing.errors import SettingError
from penjing.graph import trace
from penjing.training import load_model

Say = Callable[..., Result]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file({"[b]w[/x]": torch.randn(60, 50), "bias": torch.randn(9)}, "in.safetensors")
    save(trace(nn.Sequential(nn.Linear(4, 3)), [torch.randn(2, 4)]).eval(), "small.pj")
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def _sum(name: str) -> str:
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def _error(result: Result) -> str:
    assert result.exit_code == 1 and "Traceback" not in result.output
    return " ".join(result.output.split())


def test_there_and_back(say: Say) -> None:
    done = say("pack", "in.safetensors", "out.pj")
    assert done.exit_code == 0 and "Every tensor comes back bit for bit." in done.output
    assert say("unpack", "out.pj", "back.safetensors", "--sha256", _sum("out.pj")).exit_code == 0
    assert Path("back.safetensors").read_bytes() == Path("in.safetensors").read_bytes()
    shown = say("inspect", "out.pj")
    assert shown.exit_code == 0 and "[b]w[/x]" in shown.output and "tensors without a network" in shown.output
    assert say("unpack", "small.pj", "weights.safetensors").exit_code == 0


def test_what_is_lost_is_told(say: Say) -> None:
    done = say("pack", "in.safetensors", "out.pj", "--step", 0.1)
    assert done.exit_code == 0 and "1 tensors were rounded; the relative error is at most 2.8" in done.output
    found = json.loads(say("pack", "in.safetensors", "out.pj", "--bits", 4, "--force", "--json").output)
    assert list(found["rounded"]) == ["[b]w[/x]"] and found["n_tensors"] == 2


def test_mistakes_are_one_line(say: Say) -> None:
    assert "there is no such file" in _error(say("pack", "none", "out.pj"))
    assert "not a sound safetensors file" in _error(say("pack", "small.pj", "out.pj"))
    assert "give one of step, bits and half" in _error(say("pack", "in.safetensors", "o", "--half", "--bits", 4))
    assert "is what is read" in _error(say("pack", "in.safetensors", "./in.safetensors", "--force"))
    Path("out.pj").write_bytes(b"mine")
    assert "exists. Choose another name, or replace it with --force" in _error(say("pack", "in.safetensors", "out.pj"))
    assert "not a penjing artifact" in _error(say("unpack", "out.pj", "back"))
    assert not Path("back").exists()
    assert say("pack", "in.safetensors", "packed.pj").exit_code == 0
    assert "holds tensors and no network" in _error(say("export", "packed.pj", "small.onnx"))


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "small.pj"),
        ("unpack", "small.pj", "new"),
        ("export", "small.pj", "new"),
        ("scan", "small.pj"),
        ("bench", "small.pj"),
    ],
)
def test_a_pinned_file_must_be_that_file(words: tuple[str, ...], say: Say) -> None:
    Path("small.pj").write_bytes(b"not even an artifact")
    said = _error(say(*words, "--sha256", 64 * "0"))
    assert f"small.pj: its SHA-256 is {_sum('small.pj')}, and must be {64 * '0'}" in said
    assert "64 hexadecimal digits" in _error(say(*words, "--sha256", "abc"))
    assert not Path("new").exists()


def test_each_of_several_files_is_pinned(say: Say) -> None:
    assert "must be given for each of the 2 files, got 1" in _error(
        say("bench", "small.pj", "small.pj", "--sha256", 64 * "0")
    )


def test_a_recipe_pins_its_model(say: Say) -> None:
    load_model({"function": "small.pj", "sha256": _sum("small.pj")})
    with pytest.raises(Exception, match="its SHA-256 is"):
        load_model({"function": "small.pj", "sha256": 64 * "0"})
    with pytest.raises(SettingError, match="no settings but sha256, got width"):
        load_model({"function": "small.pj", "sha256": 64 * "0", "width": 3})
