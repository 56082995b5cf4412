"""One self-contained page about a run: read from its records, never measured anew."""

from penjing.report.overview import overview_chart, save_overview_png
from penjing.report.page import write_report

__all__ = ["overview_chart", "save_overview_png", "write_report"]
