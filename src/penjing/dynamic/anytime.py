"""Anytime prediction: answers as they come, and the best one when time is up."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import Network
from penjing.graph.network import EXIT, OUTPUT


def answers_in_time(network: Network, *inputs: Tensor, seconds: float | None = None) -> Iterator[Tensor]:
    """Every answer of a network with exits as soon as it is there, the final one last.

    Nothing is computed ahead: whoever stops asking stops the work at that exit.

    Args:
        inputs: as the network takes them, (batch, ...).
        seconds: from the first answer on, computing stops in the middle of the way to the next one when so much time has
            passed since the call; None: no limit. The first answer always comes.
    Yields: logits, (batch, classes).
    Source: Huang et al. 2018 (MSDNet), arXiv:1703.09844, section 3 (anytime prediction).
    """
    if seconds is not None and seconds <= 0:
        raise SettingError(f"anytime: seconds must be greater than 0, got {seconds}.")
    deadline = None if seconds is None else time.perf_counter() + seconds
    some = False
    with torch.inference_mode():
        for node, value in network.eval().steps(*network.bind(inputs, {})):
            if node.op in (EXIT, OUTPUT):
                some = True
                yield value
            if some and deadline is not None and time.perf_counter() > deadline:
                return


def best_answer(
    network: Network, *inputs: Tensor, seconds: float | None = None, stop: Callable[[], bool] | None = None
) -> tuple[Tensor, int]:
    """The latest answer there is when time is up or `stop` says so.

    Args:
        seconds: see `answers_in_time`. stop: asked after each answer.
    Returns: logits, (batch, classes), and the number of the exit that gave them.
    """
    found: tuple[Tensor, int] | None = None
    for k, answer in enumerate(answers_in_time(network, *inputs, seconds=seconds)):
        found = answer, k
        if stop is not None and stop():
            break
    assert found is not None  # the first answer always comes
    return found
