"""Recipes as data: every way to get one wrong has its own sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from penjing.artifact import encode
from penjing.data import Splits, in_memory_loader
from penjing.errors import DataError, SettingError
from penjing.graph import trace
from penjing.recipe import Recipe, load_task, read_recipe
from penjing.training import Task, load_model

GOOD: dict[str, Any] = {
    "data": "digits",
    "model": "penjing.models:plain_cnn",
    "stages": ["train", {"distill": {"epochs": 2}}],
}


def splits(n: int = 4) -> Splits:
    """A data set of one's own, as `tests.recipe...:splits` would name it."""
    loader = in_memory_loader(torch.zeros(n, 1, 8, 8), torch.zeros(n, dtype=torch.int64), 2)
    return Splits(loader, loader, None, ("a", "b"))


def nothing() -> int:
    return 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stages": ["distil"]}, r'recipe: stage 1: there is no stage "distil"; did you mean "distill"\?'),
        ({"stages": ["train", {"cluster": {"bit": 3}}]}, 'cluster: there is no setting "bit"; did you mean "bits"'),
        ({"stages": [{"cluster": {"bits": 0}}]}, "cluster: bits: it must be at least 1, got 0"),
        ({"stages": [{"prune-channels": {"sparsity": 1.2}}]}, "sparsity: it must be less than 1.0, got 1.2"),
        ({"stages": [{"distill": {"epochs": "many"}}]}, "distill: epochs: input should be a valid integer.*'many'"),
        ({"stages": [{"distill": {1: 2}}]}, 'distill: there is no setting "1"'),
        ({"stages": [{"distill": 3}]}, "settings of distill must be a mapping, got 3"),
        ({"stages": [["train"]]}, "must be a name, or a name with settings"),
        ({"stages": [{1: {}}]}, 'no stage "1"'),
        ({"stages": "train"}, "stages must be a list"),
        ({"stages": []}, "recipe: stages"),
        ({"stages": [{"distill": {"teacher": "nobody"}}]}, 'no teacher "nobody" before it; Known: baseline'),
        ({"stages": [{"train": {"teacher": "baseline"}}]}, 'no teacher "baseline" before it'),
        ({"stages": [{"distill": {"teacher": "big"}}, {"train": {"name": "big"}}]}, "stage 1.*no teacher"),
        ({"stages": ["train", {"cluster": {"name": "baseline"}}]}, 'name "baseline" is taken'),
        ({"budgett": {}}, 'no setting "budgett"; did you mean "budget"'),
        ({"budget": {"fil": 1}}, 'budget: there is no setting "fil"; did you mean "file"'),
        ({"budget": "4 kB"}, "recipe: budget"),
        ({"name": "a/b"}, "recipe: name"),
        ({"data": None}, "recipe: data"),
        ({"model": 3}, "recipe: model"),
    ],
)
def test_recipes_that_cannot_work(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Recipe(**(GOOD | change))


def test_a_stage_may_learn_from_an_earlier_one_by_name() -> None:
    stages = [{"train": {"name": "big"}}, "separable-convs", {"distill": {"teacher": "big"}}]
    assert Recipe(**(GOOD | {"stages": stages})).stages[2].teacher == "big"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a recipe must have the keys name, data, model, stages, budget"),
        ("- a\n", "must have the keys"),
        ("stages: [\n", "not valid YAML"),
        ("data: digits\nmodel: a:b\n", "stages: it must be given"),
        ("1: 2\n", 'no setting "1"'),
        ("? [1]\n: 2\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(SettingError, match=words):
        read_recipe(tmp_path / "r.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x8ePJ\x01")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "binary"):
        with pytest.raises(SettingError, match="recipe cannot be read"):
            read_recipe(path)


def test_the_recipe_that_comes_along_is_sound() -> None:
    for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"):
        assert read_recipe(path).stages


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "digit"}, 'got "digit"; did you mean "digits"'),
        ({"name": ["digits"]}, "data: must be package.module:function"),
        ({"name": "digits", "batchsize": 3}, 'no setting "batchsize"; did you mean "batch_size"'),
        ({"name": "digits", "batch_size": "x"}, "data: digits: "),
        ({"name": "digits", "batch_size": 0}, "data: digits: batch_size should be a positive"),
        ({"name": "mnist"}, "data: mnist needs the folder.*--data FOLDER"),
        ({"name": "no.such.module:f"}, 'the module "no.such.module" cannot be imported'),
        ({"name": "penjing.models:plain_cnn"}, "must return penjing.Task or penjing.data.Splits, got Sequential"),
    ],
)
def test_data_that_is_not_there(data: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        load_task(data)


def test_data_folders_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Download MNIST in IDX format"):
        load_task({"name": "mnist"}, tmp_path / "nowhere")
    with pytest.raises(DataError, match="Lay pictures out as"):
        load_task({"name": "image-folder"}, tmp_path / "nowhere")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's in the working folder."""
    (tmp_path / "own_module.py").write_text(
        "import torch\n"
        "def net(width=4): return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 2))\n"
        "def three(): return 3\n"
        "def data(n=4):\n"
        "    from penjing import Task\n"
        "    batches = [(torch.zeros(n, 3), torch.zeros(n, dtype=torch.int64))]\n"
        "    return Task(batches, batches)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_ones_own_model_and_data_by_name(own: Path) -> None:
    model = load_model({"function": "own_module:net", "width": 7})
    assert isinstance(model, nn.Sequential) and model[0].out_features == 7
    task = load_task({"name": "own_module:data", "n": 3})
    assert isinstance(task, Task) and task.example().size == 2
    (own / "small.pj").write_bytes(encode(trace(model, (torch.randn(2, 3),))))
    assert load_model({"function": "small.pj"})(torch.zeros(1, 3)).shape == (1, 2)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"function": "own_module:nett"}, 'has no function "nett"; did you mean "net"'),
        ({"function": "own_module:three"}, "must return a torch.nn.Module, got int"),
        ({"function": "own_module:net", "widht": 3}, 'no setting "widht"; did you mean "width"'),
        ({"function": "own_module:net", "width": "x"}, "model: own_module:net: "),
        ({"function": "resnet18"}, 'must be package.module:function, got "resnet18"'),
        ({"function": "small.pj", "width": 3}, "small.pj is a file and has no settings but sha256, got width"),
    ],
)
def test_models_that_are_not_there(own: Path, model: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        load_model(model)


def test_a_model_with_weights_from_a_file(own: Path) -> None:
    settings = {"function": "own_module:net", "weights": "net.safetensors"}
    with pytest.raises(SettingError, match="cannot be read as safetensors"):
        load_model(settings)
    weights = {
        name: torch.randn_like(tensor)
        for name, tensor in load_model({"function": "own_module:net"}).state_dict().items()
    }
    save_file(weights, own / "net.safetensors")
    assert torch.equal(load_model(settings)[0].weight, weights["0.weight"])
    with pytest.raises(SettingError, match=r"net\.safetensors does not fit: size mismatch for"):
        load_model(settings | {"width": 5})
    save_file({"0.weight": weights["0.weight"], "other": torch.zeros(1)}, own / "net.safetensors")
    with pytest.raises(SettingError, match=r"lacks 0\.bias, 1\.weight, 1\.bias, and the model does not know other"):
        load_model(settings)


def test_settings_change_by_path() -> None:
    from penjing.cli.running import recipe_from

    path = Path(__file__).parents[2] / "recipes" / "mnist.yaml"
    changes = ["stages.2.epochs=3", "budget.file=9 kB", "data.batch_size=32", "stages.1=train", "name=other"]
    found = recipe_from(path, None, None, [], changes)
    assert (found.stages[2].epochs, found.budget.file, found.name) == (3, 9000, "other")
    assert found.data["batch_size"] == 32 and found.stages[1].label == "train"
    for change, words in (
        ("stages.99.epochs=3", '"99" must be 0 to'),
        ("stages.0.epochs", "needs key=value"),
        ("stages.0.epochs=[", "not valid YAML"),
        ("name.x=1", 'nothing called "x"'),
        ("stages.0.epoch=1", 'no setting "epoch"'),
    ):
        with pytest.raises(SettingError, match=words):
            recipe_from(path, None, None, [], [change])


def test_a_recipe_keeps_its_number_of_threads() -> None:
    content = {"data": "digits", "model": "penjing.models:plain_cnn", "stages": ["train"], "threads": 1}
    assert Recipe(**Recipe(**content).to_data()).threads == 1
    assert "threads" not in Recipe(**{**content, "threads": None}).to_data()
