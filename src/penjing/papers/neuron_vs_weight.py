"""Zeros scattered over a matrix save little time, whole rows and columns that are gone save nearly all of it."""

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import curves, side_by_side
from penjing.settings import Settings

ALEXNET = {
    "conv1": (64, 363, 3025),
    "conv2": (192, 1600, 729),
    "conv3": (384, 1728, 169),
    "conv4": (256, 3456, 169),
    "conv5": (256, 2304, 169),
}
"""AlexNet's convolutions as matrix products: filters, weights of a filter, places. Source: Krizhevsky 2014, arXiv:1404.5997."""


class Experiment(Settings):
    """Each layer as a product of matrices, on one thread."""

    label = "neuron-vs-weight experiment"
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.99)
    layers: tuple[str, ...] = tuple(ALEXNET)
    turns: int = Field(default=30, description="how often each variant is timed, in turns with the others")


def arms(settings: Experiment) -> tuple[str, ...]:
    """A layer each, and each layer's product with a single vector."""
    return (*settings.layers, *(f"{name} times a vector" for name in settings.layers if name != "conv1"))


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Median milliseconds of a layer: dense, with zeros kept in the dense matrix, sparse (CSR), and physically smaller."""
    name, _, vector = arm.partition(" ")
    rows, columns, places = ALEXNET[name]
    generator = laboratory.generator(arm)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(columns, 1 if vector else places, generator=generator)
    variants: dict[str, Callable[[], Tensor]] = {"dense": partial(torch.matmul, weight, x)}
    for sparsity in settings.sparsities:
        keep = torch.rand(weight.shape, generator=generator) >= sparsity
        masked = weight * keep
        csr = _short_csr(masked)
        side = (1 - sparsity) ** 0.5  # as many weights are left, in whole rows and columns
        small = torch.randn(max(1, round(rows * side)), max(1, round(columns * side)), generator=generator)
        variants |= {
            f"masked {sparsity:g}": partial(torch.matmul, masked, x),
            f"scattered {sparsity:g}": partial(torch.matmul, csr, x),
            f"structured {sparsity:g}": partial(torch.matmul, small, x[: small.shape[1]].contiguous()),
        }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            found = _in_turns(variants, settings.turns)
    finally:
        torch.set_num_threads(threads)
    return {**found, "rows": rows, "columns": columns, "places": x.shape[1]}


def _short_csr(matrix: Tensor) -> Tensor:
    """A sparse matrix with indices of 32 bits, which torch multiplies twice as fast as with its own of 64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        csr = matrix.to_sparse_csr()
        short = (csr.crow_indices().int(), csr.col_indices().int())
        return torch.sparse_csr_tensor(*short, csr.values(), matrix.shape, check_invariants=True)


def _in_turns(variants: Mapping[str, Callable[[], Tensor]], turns: int) -> dict[str, float]:
    for call in variants.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, call in variants.items():
            begun = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - begun))
    return {name: median(found) for name, found in times.items()}


def speed_up(figures: Figures, variant: str) -> float:
    """How many times as fast as the dense product."""
    return float(figures["dense"]) / float(figures[variant])


def _mean(found: Arms, variant: str, vectors: bool) -> float:
    """The geometric mean over layers."""
    ups = torch.tensor([speed_up(figures, variant) for arm, figures in found.items() if ("vector" in arm) == vectors])
    return float(ups.log().mean().exp())


def _twice(arms: Arms, vectors: bool) -> float:
    return _mean(arms, "structured 0.9", vectors) - 2 * _mean(arms, "scattered 0.9", vectors)


def _below_half(arms: Arms, vectors: bool) -> float:
    return 5 - _mean(arms, "scattered 0.9", vectors)


def checks(settings: Experiment) -> tuple[Check, ...]:
    """What of the paper's figure 1 holds on this processor."""
    figure = "figure 1: above 90 % scattered zeros hardly speed up AlexNet's layers, and at times slow them down"
    found = []
    for vectors in (False, True):
        what = "times a vector" if vectors else "of all places"
        found += [
            Check(
                f"at 90 %, products {what}: structure is at least twice as fast as scattered zeros",
                "about twice the speed-up of non-structured sparsity (abstract: 5.1 times on CPU)",
                partial(_twice, vectors=vectors),
                unit="x",
            ),
            Check(
                f"at 90 %, products {what}: scattered zeros reach less than half of the ideal 10 times",
                figure,
                partial(_below_half, vectors=vectors),
                unit="x",
            ),
        ]
    return (
        *found,
        Check(
            "at 80 %, products of all places: scattered zeros are at most 1.5 times as fast as dense",
            figure,
            lambda arms: 1.5 - _mean(arms, "scattered 0.8", False),
            unit="x",
        ),
        Check(
            "at 90 %, products of all places: structure is at least 4 times as fast as dense",
            "5.1 times on CPU on average over the layers",
            lambda arms: _mean(arms, "structured 0.9", False) - 4,
            unit="x",
        ),
        Check(
            "zeros that are kept in a dense matrix save nothing: 0.9 to 1.1 times",
            "not measured there; the lecture's warning",
            lambda arms: 0.1 - abs(_mean(arms, "masked 0.9", False) - 1),
            unit="x",
        ),
        Check(
            "literally: at 95 %, products of all places, scattered zeros are no faster than dense",
            figure,
            lambda arms: 1 - _mean(arms, "scattered 0.95", False),
            unit="x",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Speed-up against sparsity, for products of all places and with a vector."""
    charts = []
    names = {
        "structured": "rows and columns gone",
        "scattered": "scattered zeros (CSR)",
        "masked": "zeros in a dense matrix",
    }
    for vectors, title in ((False, "AlexNet's convolutions"), (True, "the same times a vector")):
        rows = [
            {
                "arm": name,
                "zeros (%)": 100 * sparsity,
                "times as fast as dense": speed_up(figures, f"{kind} {sparsity:g}"),
            }
            for arms_of_seed in found.values()
            for arm, figures in arms_of_seed.items()
            if ("vector" in arm) == vectors
            for kind, name in names.items()
            for sparsity in settings.sparsities
        ]
        charts.append(
            curves(rows, "zeros (%)", "times as fast as dense", title=title, log_y=True, order=list(names.values()))
        )
    return side_by_side(*charts)


CLAIM = Claim(
    name="neuron-vs-weight",
    paper="Wen et al. 2016, Learning Structured Sparsity in Deep Neural Networks, arXiv:1608.03665, figure 1",
    says="Removing single weights hardly makes a network faster, because scattered zeros do not suit the hardware; "
    "removing whole "
    "structures does.",
    scaled="AlexNet's convolutions as matrix products with random weights and masks, float32, one thread, torch's "
    "dense product and its CSR "
    "product with 32-bit indices; the paper had MKL and cuSPARSE of 2016 and a trained network.",
    data=(),
    settings={"full": Experiment(), "quick": Experiment(layers=("conv3", "conv5"), turns=10)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    timed=True,
    judges=(),
)
