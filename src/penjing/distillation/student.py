"""Another network in the place of this one: students, and assistants between teacher and student.

    - train: {epochs: 8}                                                    the teacher, "baseline"
    - student: {model: {function: penjing.models:plain_cnn, widths: [16, 16, 32, 32]}}
    - distill: {epochs: 8, name: assistant}
    - student: {model: {function: penjing.models:plain_cnn, widths: [16, 16]}}
    - distill: {epochs: 8, teacher: assistant}

Source: Mirzadeh et al. 2020 (teacher assistants), arXiv:1902.03393, section 3.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator

from penjing.errors import SettingError
from penjing.graph import Network, trace, with_one_answer
from penjing.training import Stage, Task, Workbench, load_model


class Student(Stage):
    """Go on with another network, not yet trained; those before it stay as teachers."""

    label: ClassVar[str] = "student"
    model: dict[str, Any] = Field(
        description="package.module:function or a .pj file, or {function: ..., settings}, as in a recipe"
    )

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: Any) -> Any:
        return {"function": value} if isinstance(value, str) else value

    def apply(self, bench: Workbench) -> None:
        network = read_network(self.model, bench.task)
        before, now = answer_shape(bench.network), answer_shape(network)
        if before != now:
            raise SettingError(
                f"student: it must answer like the network before it, which gives {before} for a sample; it gives {now}. "
                "Set its number of classes."
            )
        n_before, n_now = (sum(p.numel() for p in n.parameters()) for n in (bench.network, network))
        bench.network = network.to(bench.accelerator.device)
        bench.standing.clear()  # what was to be done again belongs to the network before
        bench.kept.clear()
        bench.facts |= {"parameters before": n_before, "parameters": n_now}


def read_network(model: dict[str, Any], task: Task) -> Network:
    """The model of a recipe as a network for the task's samples."""
    example = task.example()
    return with_one_answer(trace(load_model(model), example.kwargs or example.args))


@torch.no_grad()
def answer_shape(network: Network) -> tuple[int, ...]:
    """The shape of the answer to one sample."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    inputs = [x.to(device) for x in network.random_inputs(1, torch.Generator())]
    was_training = network.training
    answer = network.eval().all_answers(*inputs)[-1]
    network.train(was_training)
    return tuple(answer.shape[1:])
