"""The page in a real browser, where Chromium is installed: charts are drawn, nothing complains, nothing is too wide."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penjing.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=8000",
    "--window-size=1000,3000",
    "--dump-dom",
]
# the page stands in a frame, for a window has a least width; it tells the page around it what it became
PROBE = """<script>
new MutationObserver(() => {
  const root = document.documentElement;
  if (root.dataset.charts !== "done") return;
  const charts = [...document.querySelectorAll(".chart")].map((box) => ({
    name: box.id, drawn: box.dataset.drawn, marks: box.querySelectorAll("svg path, svg text").length,
    broken: box.innerHTML.includes("NaN"), width: box.querySelector("svg")?.getBoundingClientRect().width,
    boxWidth: box.clientWidth,
  }));
  parent.postMessage(JSON.stringify({
    charts, scrollWidth: root.scrollWidth, clientWidth: root.clientWidth, width: innerWidth,
    bold: document.querySelectorAll("b").length, tensors: [...document.querySelectorAll("option")].map((o) => o.text),
  }), "*");
}).observe(document.documentElement, { attributes: true });
</script>"""
FRAME = """<!DOCTYPE html><link rel="icon" href="data:,"><pre></pre>
<script>onmessage = (event) => { document.querySelector("pre").textContent = event.data; };</script>
<iframe src="probed.html" style="width: WIDTHpx; height: 2900px; border: 0"></iframe>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; the page is checked without being drawn")


def _open(path: Path, width: int) -> dict[str, Any]:
    """What the page tells of itself after its scripts ran."""
    page = path.read_text(encoding="utf-8").replace("</main>", f"</main>{PROBE}", 1)
    path.with_name("probed.html").write_text(page, encoding="utf-8")
    frame = path.with_name("frame.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={path.parent / 'profile'}", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    assert said == []
    told = re.search(r"(?s)<pre>(.+?)</pre>", done.stdout.decode())
    assert told is not None, "the charts were not finished"
    return json.loads(html.unescape(told[1]))


def _check(told: dict[str, Any], width: int) -> None:
    assert told["width"] == width
    assert told["scrollWidth"] <= told["clientWidth"]
    assert told["bold"] == 0
    assert len(told["charts"]) == 8
    for chart in told["charts"]:
        assert chart["drawn"] == "yes", chart
        assert chart["marks"] > 3, chart
        assert not chart["broken"], chart
        assert chart["width"] <= chart["boxWidth"] + 1, chart


def test_page_at_900_pixels(run_folder: Callable[..., Path]) -> None:
    told = _open(write_report(run_folder()), 900)
    _check(told, 900)
    assert told["tensors"] == ["conv1.depthwise.weight", "conv2.pointwise.weight", "fc1.weight", "fc2.weight"]


def test_hostile_page_at_420_pixels(run_folder: Callable[..., Path], hostile: Callable[[str], dict[str, Any]]) -> None:
    text = "</script><b>bold</b><!--<script>alert(1)</script> 'and' \"quotes\" ${1} {{ 2 }}"
    told = _open(write_report(run_folder(**hostile(text))), 420)
    _check(told, 420)
    assert told["tensors"] == [text, "other"]
