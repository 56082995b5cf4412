"""Dynamic computation: networks that adjust their own cost."""

from penjing.dynamic.anytime import answers_in_time, best_answer
from penjing.dynamic.calibration import calibrate_exits, temperature
from penjing.dynamic.controller import Configuration, Controller, configurations
from penjing.dynamic.early_exit import EarlyExits, attach_exits, places_for_exits
from penjing.dynamic.routing import DropBlocks, RouteChannels, SkipBlocks
from penjing.dynamic.slimmable import at_width, make_slimmable, measure_widths_
from penjing.dynamic.thresholds import AtExits, for_drop, for_saving
from penjing.dynamic.widths import Slimmable
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {
    stage.label: stage for stage in (EarlyExits, Slimmable, SkipBlocks, DropBlocks, RouteChannels)
}

__all__ = [
    "STAGES",
    "AtExits",
    "Configuration",
    "Controller",
    "DropBlocks",
    "EarlyExits",
    "RouteChannels",
    "SkipBlocks",
    "Slimmable",
    "answers_in_time",
    "at_width",
    "attach_exits",
    "best_answer",
    "calibrate_exits",
    "configurations",
    "for_drop",
    "for_saving",
    "make_slimmable",
    "measure_widths_",
    "places_for_exits",
    "temperature",
]
