"""Weights coded with unlabelled images take far fewer bytes than those of the international standard's coder."""

import contextlib
import importlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from penjing.artifact import decode, encode
from penjing.errors import DataError
from penjing.files import write_atomically
from penjing.graph import Network, fold_batch_norms, trace
from penjing.measurement.divergence import divergence, final_answers
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import side_by_side, traces
from penjing.papers.rate_curves import bytes_at, bytes_at_accuracy, frontier, smoothed
from penjing.quantization import CalibratedCoding
from penjing.recipe import load_model
from penjing.settings import Settings
from penjing.training import Task

STANDARD, PLAIN, BEST, BEST_PLAIN = (
    "NNCodec",
    "NNCodec, not dependent",
    "NNCodec, norms folded",
    "NNCodec, norms folded, not dependent",
)
OURS, DATA_FREE = "calibrated coding", "calibrated coding, no images"
PEERS: dict[str, dict[str, Any]] = {
    STANDARD: {"use_dq": True},
    PLAIN: {"use_dq": False},
    BEST: {"use_dq": True, "bnf": True, "nonweight_qp": -32},
    BEST_PLAIN: {"use_dq": False, "bnf": True, "nonweight_qp": -32},
}
"""Ways of the other coder. Folding, and a coarser step for what is not a weight than its -75, make its files smaller."""
DIVERGENCES, LOSSES = (0.03, 0.06, 0.1), (0.5, 1.0)
_TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.datasets", "torchvision.models")
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Experiment(Settings):
    """A given ResNet-20 of CIFAR-10, coded at many qualities."""

    label = "calibrated-coding experiment"
    samples: int = Field(default=1000, description="unlabelled training images")
    noises: tuple[float, ...] = Field(
        default=(0.0020, 0.0024, 0.0028, 0.0033, 0.0039, 0.0046, 0.0055, 0.0065, 0.0078),
        description="of `calibrated-coding`",
    )
    free_noises: tuple[float, ...] = Field(
        default=(0.22, 0.26, 0.31, 0.37, 0.44, 0.52, 0.62, 0.74), description="of `calibrated-coding` without samples"
    )
    qps: tuple[int, ...] = Field(default=tuple(range(-28, -15)), description="qualities of NNCodec, 2^(1/2) apart")


def arms(settings: Experiment) -> tuple[str, ...]:
    """NNCodec in all ways, and calibrated coding with and without images."""
    return (*PEERS, OURS, DATA_FREE)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Bytes, divergence and right answers on the test images at each quality; the seed chooses the calibration images."""
    task = laboratory.task("cifar10-jpeg", mean=_MEAN, deviation=_DEVIATION)
    weights = laboratory.weights("resnet20_cifar10")
    if arm in PEERS:
        return _peer(laboratory, arm, weights, settings.qps, task)
    judge = _Judge(_given(weights), task)
    points: list[dict[str, Any]] = []
    samples, noises = (settings.samples, settings.noises) if arm == OURS else (0, settings.free_noises)
    for noise in noises:
        begun = time.process_time()
        bench = laboratory.bench(trace(_given(weights), task.example().args), task, name=f"{noise:g}")
        CalibratedCoding(samples=samples, noise=noise).apply(bench)
        content = encode(bench.network)
        seconds = time.process_time() - begun
        points.append({"noise": noise, "seconds": seconds, **judge.figures(len(content), decode(content))})
    return {"points": points, "dense": judge.dense}


def _given(weights: Path) -> nn.Module:
    return load_model({"function": "penjing.models:resnet_cifar", "depth": 20, "weights": str(weights)}).eval()


class _Judge:
    """Compares a network's answers to the test images with those of the given one."""

    def __init__(self, given: nn.Module, task: Task) -> None:
        self.task = task
        assert task.test is not None
        self.batches = list(task.batches(task.test))
        self.labels = torch.cat([batch.labels for batch in self.batches])
        self.before = final_answers(trace(given, task.example().args).eval(), self.batches)
        self.dense = {"correct": self._right(self.before), "total": len(self.labels)}

    def figures(self, size: int, network: Network) -> dict[str, Any]:
        """Of a network that a file of `size` bytes gave back."""
        after = final_answers(network.eval(), self.batches)
        return {
            "bytes": size,
            "divergence": divergence(self.task, self.before, after),
            "correct": self._right(after),
        }

    def _right(self, answers: Tensor) -> int:
        return int((answers.argmax(1) == self.labels).sum())


def _peer(laboratory: Laboratory, arm: str, weights: Path, qps: tuple[int, ...], task: Task) -> Figures:
    """No seed decides anything here, so the first one's figures are kept for all."""
    kept = None if laboratory.folder is None else laboratory.folder / "left" / f"{arm}.json"
    if kept is not None and kept.is_file():
        found: Figures = json.loads(kept.read_text(encoding="utf-8"))
        return found
    codec, judge, points = nncodec(), _Judge(_given(weights), task), []
    for qp in qps:
        begun = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            content = codec.encode(
                _given(weights), {**PEERS[arm], "qp": qp, "ioq": False, "verbose": False, "results": folder}
            )
            seconds = time.process_time() - begun
            tensors = codec.decode(content)
        network = with_tensors(trace(_given(weights), task.example().args).eval(), tensors)
        points.append({"qp": qp, "seconds": seconds, **judge.figures(len(content), network)})
    figures: Figures = {"points": points, "dense": judge.dense}
    if kept is not None:
        write_atomically(kept, json.dumps(figures).encode())
    return figures


@cache
def nncodec() -> Any:
    """The module `nncodec.nn` of NNCodec 2.1.3, the reference software of ISO/IEC 15938-17.

    It imports torchvision for data sets that are not needed here; a stand-in serves where it cannot be imported.
    Raises: DataError: it is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, AttributeError):
        sys.modules.update({name: MagicMock() for name in _TORCHVISION})
    try:
        return importlib.import_module("nncodec.nn")
    except ImportError as error:
        raise DataError(
            f"reproduce: calibrated-coding compares with NNCodec, and it cannot be imported ({error}). Install it beside "
            "penjing, with a C++ compiler at hand: pip install nncodec==2.1.3. Where pip finds versions that conflict: "
            "pip install --no-deps nncodec==2.1.3 h5py opencv-python-headless pandas pytz pycocotools scikit-learn joblib "
            "threadpoolctl."
        ) from None


def with_tensors(network: Network, tensors: Mapping[str, np.ndarray]) -> Network:
    """A network with what NNCodec gave back, where it folded norms with these folded: weight = values * scale of its row."""
    folded = any(name.endswith("_scaling") for name in tensors)
    if folded:
        network, _ = fold_batch_norms(network)
    state: dict[str, Tensor] = {}
    for name, values in tensors.items():
        tensor = torch.as_tensor(np.asarray(values))
        if name.endswith("_scaling"):
            continue
        if folded and name.endswith(".weight.bias"):
            state[f"{name.removesuffix('.weight.bias')}.bias"] = tensor
        elif f"{name}_scaling" in tensors:
            scale = torch.as_tensor(np.asarray(tensors[f"{name}_scaling"]))
            state[name] = tensor * scale.reshape(-1, *[1] * (tensor.dim() - 1))
        else:
            state[name] = tensor
    missing, unknown = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise DataError(f"reproduce: NNCodec's tensors do not fit: missing {missing[:3]}, unknown {unknown[:3]}.")
    return network


def _points(figures: Figures) -> list[tuple[float, float]]:
    return [(point["bytes"], point["divergence"]) for point in figures["points"]]


def _accuracies(figures: Figures) -> list[tuple[float, float]]:
    total = figures["dense"]["total"]
    return [(point["bytes"], 100 * point["correct"] / total) for point in figures["points"]]


def saved_at_divergence(of_seed: Arms, arm: str, loss: float) -> float:
    """Percent of bytes saved against the best of NNCodec's ways at an equal divergence."""
    peers = [point for peer in PEERS for point in _points(of_seed[peer])]
    return 100 * (1 - bytes_at(_points(of_seed[arm]), loss) / bytes_at(peers, loss))


def saved_at_accuracy(of_seed: Arms, arm: str, loss: float) -> float:
    """The same at an accuracy below the dense network's by `loss` points, on smoothed curves."""
    dense = of_seed[arm]["dense"]
    accuracy = 100 * dense["correct"] / dense["total"] - loss
    peers = [bytes_at_accuracy(_accuracies(of_seed[peer]), accuracy) for peer in PEERS]
    return 100 * (1 - bytes_at_accuracy(_accuracies(of_seed[arm]), accuracy) / float(np.nanmin(peers)))


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Bytes saved at equal divergence and at equal accuracy."""
    found = [
        Check(
            f"at a divergence of {loss:g} the file is at least 35 % smaller than NNCodec's smallest",
            "no paper: our aim",
            lambda arms, loss=loss: saved_at_divergence(arms, OURS, loss),  # type: ignore[misc]
            35.0,
            "%",
        )
        for loss in DIVERGENCES
    ]
    found += [
        Check(
            f"{loss:g} points below the dense network, on smoothed curves, at least 30 % smaller",
            "no paper: our aim",
            lambda arms, loss=loss: saved_at_accuracy(arms, OURS, loss),  # type: ignore[misc]
            30.0,
            "%",
        )
        for loss in LOSSES
    ]
    found += [
        Check(
            f"without images, at a divergence of {loss:g}, at least 5 % smaller",
            "no paper: our aim",
            lambda arms, loss=loss: saved_at_divergence(arms, DATA_FREE, loss),  # type: ignore[misc]
            5.0,
            "%",
        )
        for loss in DIVERGENCES
    ]
    found.append(
        Check(
            "coding takes at most two minutes of processor time",
            "no paper: our aim",
            lambda arms: 120 - max(point["seconds"] for point in arms[OURS]["points"]),
            unit="s",
        )
    )
    return tuple(found)


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Divergence and accuracy against the size of the file, a line for each seed."""
    size, lost, right = "file (kB)", "divergence", "accuracy (%), smoothed"
    divergences: list[dict[str, Any]] = []
    accuracies: list[dict[str, Any]] = []
    for seed, of_seed in found.items():
        for arm, figures in of_seed.items():
            row = {"arm": arm, "seed": seed}
            divergences += [{**row, size: n / 1000, lost: loss} for n, loss in frontier(_points(figures))]
            accuracies += [{**row, size: n / 1000, right: value} for n, value in smoothed(_accuracies(figures))]
    order = [OURS, DATA_FREE, *PEERS]
    return side_by_side(
        traces(divergences, size, lost, title="ResNet-20: divergence from the network before", order=order, log_y=True),
        traces(accuracies, size, right, title="accuracy on 10,000 test images", order=order),
    )


CLAIM = Claim(
    name="calibrated-coding",
    paper="ISO/IEC 15938-17 (NNC) and its reference software NNCodec 2.1.3; error feedback: Frantar et al. 2023, GPTQ, "
    "arXiv:2210.17323",
    says="A trained network, coded with a thousand unlabelled images, takes far fewer bytes than with the international "
    "standard's reference software for the same answers, and without any images still fewer.",
    scaled="The given ResNet-20 of CIFAR-10 (1,084,392 bytes of floats), judged on the 10,000 test images as JPEG; nothing is "
    "trained. Seeds choose the 1,000 training images, labels drawn from the answers, and the noise that stands in for images; "
    "NNCodec has no chance in it and is the same for all seeds. NNCodec at every quality in four ways: with and without "
    "dependent quantization, at its defaults, and with norms folded and a coarser step for what is no weight; the best of all "
    "is compared with. Sizes at equal divergence are interpolated on the frontiers, in logarithms; accuracies are smoothed by "
    "isotonic regression first. Five seeds: the first three left the figure at 1 pp undecided.",
    data=("cifar10-jpeg",),
    settings={
        "full": Experiment(),
        "quick": Experiment(noises=(0.0033, 0.0046), free_noises=(0.31, 0.44), qps=(-26, -23, -20)),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.artifact.codecs.grid",
        "penjing.entropy.context_coder",
        "penjing.entropy.trellis",
        "penjing.papers.rate_curves",
        "penjing.quantization.bias_correction",
        "penjing.quantization.calibrated",
        "penjing.quantization.error_feedback",
        "penjing.sensitivity.covariance",
        "penjing.sensitivity.gradient_moments",
    ),
    seeds=5,
)
