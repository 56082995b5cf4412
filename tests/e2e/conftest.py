"""A recipe on the digits that takes seconds, and one finished run of it."""

import gc
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import penjing.recipe.gauge
import penjing.training.fit  # noqa: F401  both are patched
from penjing.cli.main import app

LAUNCHER = Path(__file__).with_name("launcher.py")

gc.freeze()  # the loop collects garbage after each training; what is there already need not be looked at each time

RECIPE = """\
name: tiny
data: {name: digits, batch_size: 128}
model: {function: "penjing.models:plain_cnn", widths: [6, 8], first_kernel: 3, first_stride: 1, pool_after: [0]}
stages:
  - train: {epochs: 3, lr: 0.02}
  - separable-convs: {layers: [block1.conv]}
  - prune-channels: {sparsity: 0.3, rounds: 2, epochs: 2, lr: 0.01}
  - early-exits: {after: [block0.relu], epochs: 2, lr: 0.01, saving: 0.02}
  - cluster: {bits: 4, epochs: 2, lr: 0.01, teacher: baseline}
  - distill: {epochs: 2, lr: 0.003, average: 0.9}
budget: {file: 4 kB, drop: 0.1 pp}
"""


@pytest.fixture
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed in this test."""
    for place, value in runpy.run_path(str(LAUNCHER))["patches"]():
        monkeypatch.setattr(place, value)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def finished(recipe: Path) -> Iterator[Path]:
    """The folder of a run that nobody disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        for place, value in runpy.run_path(str(LAUNCHER))["patches"]():
            patch.setattr(place, value)
        result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(recipe.parent / "run"), "--threads", "1"])
    assert result.exit_code == 0, result.output
    yield recipe.parent / "run"


@pytest.fixture
def penjing_says() -> Callable[..., Result]:
    """The command line in this process."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])
