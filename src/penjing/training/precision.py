"""Whether mixed precision pays here: measured, since a processor without instructions for it imitates it, slowly."""

import time

import torch
import torch.nn.functional as F

from penjing.training.progress import Reporter

WORTH_SAYING = 1.2
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SIZE, _ROUNDS = 256, 5


def times_as_long(precision: str, device: torch.device) -> float:
    """How many times as long as in float32 a linear layer of 256 x 256 takes for 256 samples, the fastest of 5, in turns.

    Args:
        precision: as Accelerate names it; 1 for any that is not bf16 or fp16.
        device: measured on the CPU only; elsewhere 1.
    """
    other = _TYPES.get(precision)
    if other is None or device.type != "cpu":
        return 1.0
    plain = torch.ones(_SIZE, _SIZE)
    least = dict.fromkeys((torch.float32, other), float("inf"))
    with torch.no_grad():
        for _ in range(_ROUNDS + 1):  # least of all: the first is a warm-up
            for dtype in least:
                matrix = plain.to(dtype)
                begun = time.perf_counter()
                F.linear(matrix, matrix)
                least[dtype] = min(least[dtype], time.perf_counter() - begun)
    return least[other] / least[torch.float32]


def say_if_slower(precision: str, device: torch.device | None, reporter: Reporter) -> None:
    """Tell the user where mixed precision makes training slower; device None is the best there is."""
    if device is None and torch.accelerator.is_available():
        return
    ratio = times_as_long(precision, device or torch.device("cpu"))
    if ratio > WORTH_SAYING:
        reporter.say(
            f"  [yellow]note[/yellow] layers in {precision} take {ratio:.1f} times as long as in float32 on this processor; "
            "training in float32 is faster"
        )
