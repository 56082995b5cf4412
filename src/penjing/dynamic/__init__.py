"""Dynamic computation: networks that adjust their own cost."""

from penjing.dynamic.early_exit import EarlyExits, attach_exits, confidence_threshold, places_for_exits
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {stage.label: stage for stage in (EarlyExits,)}

__all__ = ["STAGES", "EarlyExits", "attach_exits", "confidence_threshold", "places_for_exits"]
