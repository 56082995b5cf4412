"""Claims on pictures: every arm runs and every check is read from it; networks are the papers' sizes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from penjing.data import Splits, in_memory_loader
from penjing.data.augment import random_affine
from penjing.distillation import Distill
from penjing.errors import SettingError
from penjing.graph import trace
from penjing.measurement import block_shares
from penjing.models import resnet_cifar
from penjing.papers import claim_named
from penjing.papers.claim import Arms
from penjing.papers.fitnets import Experiment as FitNets
from penjing.papers.fitnets import thin_deep
from penjing.papers.hinton_distillation import AFTER, HARD, NO_THREES, ONLY_7_8, SOFT, TEACHER, mlp
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import write_picture
from penjing.papers.small_pictures import small_pictures
from penjing.papers.teacher_assistant import plain_by_depth
from penjing.papers.under_100k import DEVIATION, MEAN
from penjing.papers.under_100k import Experiment as Under100k
from penjing.papers.ways import best_without, without_blocks

SMALL: dict[str, dict[str, Any]] = {
    "hinton-distillation": {
        "teacher_epochs": 1,
        "epochs": 1,
        "few_epochs": 1,
        "thin_epochs": 1,
        "thin": 5,
        "units": 6,
        "teacher_units": 7,
    },
    "do-deep-nets": {
        "deep_epochs": 1,
        "epochs": 3,
        "slow_epochs": 1,
        "hidden": 20,
        "bottleneck": 4,
    },
    "fitnets": {
        "teacher_epochs": 1,
        "epochs": 2,
        "hint_epochs": 1,
        "widths": (4, 4, 4),
        "pool_after": (0,),
        "guided": "relu1",
        "hint": "pool1",
    },
    "teacher-assistant": {"depths": (4, 6), "teacher_epochs": 1, "epochs": 1},
    "ensemble-distillation": {"members": 2, "epochs": 1, "student_epochs": 1, "widths": (4, 4)},
    "weight-averaging": {"epochs": 2, "averaged": 1},
    "under-100k": {"teacher_epochs": 1, "epochs": 1, "plain": (8, 4), "architecture": (14, 4)},
    "early-exit": {"epochs": 1, "sweep": (0.3,), "shown": 2},
    "msdnet": {"epochs": 1, "budget": 0.8, "sweep": (0.5, 0.8), "shown": 2, "blocks": 2, "growth": 2, "batch_size": 10},
    "slimmable": {"epochs": 1, "widths": (0.5, 1.0)},
    "universally-slimmable": {"epochs": 1, "judged": (0.25, 0.54, 1.0), "samples": 20},
    "skipnet": {"epochs": 1, "more_epochs": 1, "alphas": (0.4, 0.7), "judged": 0.4, "shown": 2},
    "blockdrop": {
        "epochs": 1,
        "more_epochs": 1,
        "policy_epochs": 1,
        "penalties": (0.5, 2.0),
        "judged": 2.0,
        "shown": 2,
    },
    "runtime-neural-pruning": {
        "epochs": 1,
        "more_epochs": 2,
        "warm": 1,
        "penalties": (0.01, 0.03),
        "judged": 0.03,
        "shown": 2,
    },
}


class RandomPictures(Laboratory):
    """A laboratory whose data sets are noise with labels."""

    def splits(self, name: str, **settings: Any) -> Splits:
        generator = torch.Generator().manual_seed(0)
        side = settings.get("size", 16)
        shape = (1, 28, 28) if name == "mnist" else (3, side, side)
        change = random_affine() if settings.get("augment") else None

        def part(n: int, shuffle: bool = False) -> Any:
            labels = torch.arange(n) % 10
            images = torch.randn(n, *shape, generator=generator) + labels.view(-1, 1, 1, 1) / 5
            versions = settings.get("versions") if shuffle else None
            return in_memory_loader(
                images, labels, 20, shuffle=shuffle, augment=change if shuffle else None, versions=versions
            )

        return Splits(part(40, True), part(20), part(20), tuple("0123456789"))

    def weights(self, name: str) -> Path:
        assert name == "resnet20_cifar10" and self.folder is not None
        path = self.folder / f"{name}.safetensors"
        save_file(resnet_cifar(20).state_dict(), path)
        return path


@pytest.mark.parametrize("name", SMALL)
def test_every_arm_runs_and_every_check_and_the_picture_are_made_of_them(name: str, tmp_path: Path) -> None:
    claim = claim_named(name)
    settings = claim.settings["full"].model_copy(update=SMALL[name])
    laboratory = RandomPictures(0, folder=tmp_path, device=torch.device("cpu"))
    found: dict[str, Any] = {}
    for arm in claim.arms(settings):
        laboratory.key = arm
        found[arm] = claim.measure(laboratory, arm, settings, found)
    for check in claim.checks(settings):
        assert math.isfinite(check.difference(found)), check.says
    write_picture(claim.picture({0: found, 1: found, 2: found}, settings), tmp_path / "picture.png")


def test_validation_pictures_are_of_all_classes_though_folders_are_read_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Sorted(RandomPictures):
        def splits(self, name: str, **settings: Any) -> Splits:
            found = super().splits(name, **settings)
            held = found.valid.dataset  # type: ignore[attr-defined]
            return replace(found, valid=in_memory_loader(held.images, held.labels.sort().values, 20))

    monkeypatch.setattr("penjing.papers.small_pictures.N_VALID", 10)
    task = small_pictures(Sorted(0, device=torch.device("cpu")), 40, 16)
    assert [int(label) for batch in task.batches(task.valid) for label in batch.labels] == list(range(10))


def test_fixed_ways_are_as_many_blocks_as_allowed_and_no_fewer() -> None:
    task = small_pictures(RandomPictures(0, device=torch.device("cpu")), 40, 16)
    network = trace(resnet_cifar(14, width=4), task.example().args)  # with four blocks that can be skipped
    for computed, dropped in ((1.0, 0), (0.75, 1), (0.7, 1), (0.74999999999, 1), (0.5, 2)):
        assert len(best_without(network, task, computed)) == dropped
    without = without_blocks(network, (0, 2)).eval()
    opened = block_shares(without, without.route(*task.example().args).opened)
    assert [float(share.mean()) for share in opened.values()] == [0, 1, 0, 1]


def test_the_homework_is_trained_as_its_recipe_says_but_shorter() -> None:
    recipe = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "under-100k.yaml").read_text())
    train, student, distill = (next(iter(stage.items())) for stage in recipe["stages"])
    own = Under100k()
    assert recipe["data"] == {
        "name": "image-folder",
        "n_valid": 50_000 - own.images,
        "versions": own.versions,
        "mean": [*MEAN],
        "deviation": [*DEVIATION],
    }
    teacher = {"epochs": own.teacher_epochs, "lr": own.teacher_lr, "weight_decay": own.teacher_weight_decay}
    assert train == ("train", {**teacher, "optimizer": "sgd"})
    depth, width = own.architecture
    assert student[1]["model"] == {"function": "penjing.models:resnet_cifar", "depth": depth, "width": width}
    schedule = {"epochs": 40, "lr": own.lr, "optimizer": "sgd", "weight_decay": own.weight_decay}
    assert distill == ("distill", {**schedule, "temperature": own.temperature})
    assert Distill(**distill[1]).soft == own.soft and Distill(**distill[1]).warmup == 0.05


def test_hintons_figures_pass_his_claims_checks() -> None:
    claim = claim_named("hinton-distillation")
    settings = claim.settings["full"]
    unseen = {NO_THREES: (206, 109, 3.5), ONLY_7_8: (4730, 1320, -7.6)}
    found: Arms = {
        TEACHER: {"errors": 67},
        HARD: {"errors": 146},
        SOFT: {"errors": 74},
        **{
            arm: {
                "errors": before,
                AFTER: after,
                "shift from valid": shift,
                "right of the 3s (%), shift from valid": 98.6,
            }
            for arm, (before, after, shift) in unseen.items()
        },
        **{f"thin, T = {t:g}": {"errors": 300 + abs(t - 3)} for t in settings.temperatures},
    }
    for check in claim.checks(settings):
        assert check.difference(found) >= check.at_least, check.says


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_networks_have_the_papers_sizes() -> None:
    assert n_parameters(mlp(784, 1200, 1200, 10, dropout=0.5, input_dropout=0.2)) == 2_395_210
    assert n_parameters(mlp(784, 800, 800, 10)) == 1_276_810
    sizes = {2: 13_082, 4: 37_338, 6: 82_778, 8: 327_962, 10: 2_487_850}
    assert {depth: n_parameters(plain_by_depth(depth)) for depth in sizes} == sizes
    assert plain_by_depth(10, side=16)(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(SettingError, match="depth must be one of 2, 4, 6, 8, 10, got 3"):
        plain_by_depth(3)


def test_the_fitnet_is_deep_and_thin_and_has_no_norms() -> None:
    settings = FitNets()
    network = thin_deep(settings.widths, settings.pool_after)
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    assert 11 <= len(convolutions) <= 13 and max(layer.out_channels for layer in convolutions) <= 24
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network)
    assert 25_000 < n_parameters(network) < 40_000
    assert hasattr(network, settings.guided)
