"""The page: one file that asks nothing of a network, says what it must, and survives what is hostile or missing."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from penjing.errors import RunError
from penjing.report import overview_chart, save_overview_png, write_report

HOSTILE = "</script><b>bold</b><!--<script>alert(1)"
SECTIONS = ["stages", "path", "layers", "weights", "exits", "classes", "recipe", "warnings", "run"]
CHARTS = ["accuracy-bytes", "accuracy-latency", "layers", "weights", "exits", "exits-classes", "recall", "changed"]
Write = Callable[..., Path]


class _Page(HTMLParser):
    """Elements, their text, and the chart data of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._in = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[\s\u00a0\u202f]+", " ", " ".join(self.words))

    def ids(self) -> list[str]:
        return [value for _, attrs in self.elements if (value := attrs.get("id"))]

    def charts(self) -> dict[str, Any]:
        return json.loads(self.scripts[1])["charts"]


def test_everything_is_in_one_file_that_loads_nothing(run_folder: Write) -> None:
    path = write_report(run_folder())
    assert path.name == "report.html"
    page = _Page(path)
    for tag, attrs in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attrs.get(name) or "#").startswith("#"), (tag, attrs)
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    own = page.scripts[1] + page.scripts[2]
    assert "http://" not in own
    assert "https://" not in own
    html = path.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(", re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1])  # type: ignore[index]
    assert html.count("vegaEmbed=") == 1
    assert path.stat().st_size < 1_500_000


def test_sections_and_charts_stand_in_order(run_folder: Write) -> None:
    page = _Page(write_report(run_folder()))
    assert [i for i in page.ids() if i in SECTIONS] == SECTIONS
    assert [i.removeprefix("chart-") for i in page.ids() if i.startswith("chart-") and i != "chart-data"] == CHARTS
    assert list(page.charts()) == CHARTS


def test_headline_says_the_result_and_the_budget(run_folder: Write) -> None:
    text = _Page(write_report(run_folder())).text
    assert (
        "2.43 kB instead of 1.10 MB: 99.21 % (9 921 of 10 000, 95 % interval 99.02 to 99.37 %) on the test set" in text
    )
    assert "0.31 pp below the baseline (95 % interval of the difference −0.48 to −0.15 pp)" in text
    assert "Budget not met. 1 of 3 limits is missed: drop." in text
    assert "drop, upper end of its 95 % interval 0.30 pp 0.48 pp ✗ 0.18 pp over" in text


def test_a_limit_that_was_not_measured_is_not_met(run_folder: Write) -> None:
    line = {"name": "latency", "limit": 5.0, "measured": float("nan"), "met": False, "text": "latency: not measured"}
    text = _Page(write_report(run_folder(budget=[line]))).text
    assert "5.00 ms not measured ✗ not met" in text


def test_the_table_names_the_set_of_every_row(run_folder: Write) -> None:
    text = _Page(write_report(run_folder())).text
    table = text[text.index("Latency baseline") : text.index("In italics")]
    assert (
        table.index("fp16 + zstd")
        < table.index("separable convs")
        < table.index("early exit")
        < table.index("final test")
    )
    assert "mask ⚠ 1 validation 99.06 % 4 953 of 5 000 98.75 to 99.29 % −0.36 pp −0.53 to −0.20 pp 6.21k" in table
    assert "0.399 ms 0.383 to 0.435 ms 1.01× faster spreads overlap" in table


def test_a_warning_is_listed_once(run_folder: Write) -> None:
    page = _Page(write_report(run_folder()))
    assert page.text.count("The mask has no structure") == 1
    assert "the run: Latency was measured while another process was running." in page.text


def test_the_artifact_is_compared_with_its_checksum(run_folder: Write) -> None:
    folder = run_folder()
    assert "is the one that was measured" in _Page(write_report(folder)).text
    (folder / "mnist.pj").write_bytes(b"changed")
    assert "its checksum differs" in _Page(write_report(folder)).text
    (folder / "mnist.pj").unlink()
    assert "not in this folder any more" in _Page(write_report(folder)).text


def test_hostile_text_stays_text(run_folder: Write, hostile: Callable[[str], dict[str, Any]]) -> None:
    page = _Page(write_report(run_folder(**hostile(HOSTILE))))
    assert not [tag for tag, _ in page.elements if tag == "b"]
    assert len(page.scripts) == 3
    assert "<" not in page.scripts[1]
    assert page.charts()["layers"]
    assert "</script><b>bold</b>" in page.text


def test_sections_without_data_say_so(run_folder: Write, make_report: Callable[..., dict[str, Any]]) -> None:
    value = make_report()
    final = {**value["final"], "operating_points": [], "latency_ms": None, "drop": None, "layer_bytes": {}}
    stages = [{**stage, "latency_ms": None} for stage in value["stages"]]
    nothing = {"per_class": None, "changed": None, "exits": None, "budget": [], "warnings": [], "layers_before": {}}
    folder = run_folder(
        **nothing,
        weights={},
        recipe_text="",
        final=final,
        stages=stages,
        baseline={**value["baseline"], "latency_ms": None},
        baseline_rows=[],
    )
    page = _Page(write_report(folder))
    assert list(page.charts()) == ["accuracy-bytes"]
    assert [i for i in page.ids() if i in SECTIONS] == SECTIONS
    for sentence in (
        "No budget was set.",
        "no chart of latency: it was measured for fewer than two networks.",
        "Left out: this run has no bytes by layer.",
        "Left out: this run has no histograms of weights.",
        "Left out: the final network has no exits and no gates",
        "Recall by class is left out",
        "Changed answers are left out",
        "Left out: this run has no text of its recipe.",
    ):
        assert sentence in page.text


def test_no_stages_and_no_test_set(run_folder: Write, make_report: Callable[..., dict[str, Any]]) -> None:
    value = make_report()
    baseline = value["baseline_valid"]
    folder = run_folder(
        stages=[], baseline=baseline, final={**value["stages"][-1], "name": "final"}, task={"metric": "accuracy"}
    )
    page = _Page(write_report(folder))
    assert "on the validation set" in page.text
    points = page.charts()["accuracy-bytes"]["data"]["values"]
    assert [(p["name"], p["set"]) for p in points if p["set"] != "for comparison"] == [
        ("baseline", "validation set"),
        ("final", "validation set"),
    ]


def test_a_final_record_that_repeats_the_last_stage_is_one_point(
    run_folder: Write, make_report: Callable[..., dict[str, Any]]
) -> None:
    value = make_report()
    final = {**value["stages"][-1], "name": "final"}
    page = _Page(write_report(run_folder(baseline=value["baseline_valid"], final=final)))
    points = page.charts()["accuracy-bytes"]["data"]["values"]
    assert [p["name"] for p in points if "final" in p["name"]] == ["early exit (final)"]


def test_another_metric_than_accuracy(run_folder: Write, make_report: Callable[..., dict[str, Any]]) -> None:
    value = make_report()
    metric = {"name": "loss", "value": 0.25, "low": 0.24, "high": 0.27, "n": 5000, "higher_is_better": False}
    change = {
        "metric": metric,
        "accuracy": None,
        "drop": {"value": 0.02, "low": 0.01, "high": 0.03},
        "operating_points": [],
    }
    rows = {name: {**value[name], **change} for name in ("baseline", "baseline_valid", "final")}
    page = _Page(write_report(run_folder(**rows, stages=[{**s, **change} for s in value["stages"]], baseline_rows=[])))
    assert "loss 0.25 (95 % interval 0.24 to 0.27) on the test set, 0.0200 above the baseline" in page.text
    assert "+0.0200 +0.0100 to +0.0300" in page.text


def test_many_layers_and_classes_are_cut_and_it_says_so(
    run_folder: Write, make_report: Callable[..., dict[str, Any]]
) -> None:
    value = make_report()
    layers = {f"block{i}.conv": 100 + i for i in range(70)}
    classes = [{"class": f"c{i}", "n": 5, "baseline_recall": 0.9, "final_recall": 0.8} for i in range(200)]
    shares = [{"class": f"c{i}", "shares": [1 - i / 200, i / 200]} for i in range(200)]
    blocks = {"names": ["a", "b"], "share": [0.5, 0.5], "by_class": shares}
    folder = run_folder(
        layers_before=layers,
        final={**value["final"], "layer_bytes": layers},
        per_class=classes,
        exits={**value["exits"], "by_class": shares},
        blocks=blocks,
    )
    page = _Page(write_report(folder))
    rows = page.charts()["layers"]["data"]["values"]
    assert len({row["layer"] for row in rows}) == 40
    assert {row["Size"] for row in rows if row["layer"] == "31 smaller layers"} == {"3.56 kB"}
    assert "the 40 largest" in page.text
    assert "the 40 classes that lost most" in page.text
    assert "the 40 classes that go furthest" in page.text
    assert "the 40 classes that need most" in page.text
    assert {row["Share"] for row in page.charts()["blocks"]["data"]["values"]} == {"50.0\N{NO-BREAK SPACE}%"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no report of a run here"),
        (b"", "is damaged, it is not valid JSON"),
        (b'{"schema_version": 1', "is damaged, it is not valid JSON"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "is not a report of penjing"),
        (b'{"schema_version": "1"}', "is not a report of penjing"),
        (b'{"schema_version": 2}', "was written by a newer penjing"),
        (b'{"schema_version": 1}', "is damaged at"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(RunError, match=words):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("part", ["baseline", "final", "artifact", "task", "stages"])
def test_a_damaged_part_is_named(run_folder: Write, part: str) -> None:
    with pytest.raises(RunError, match=f"is damaged at {part}"):
        write_report(run_folder(**{part: [{}] if part == "stages" else {}}))


def test_histograms_must_fit_their_edges(run_folder: Write) -> None:
    with pytest.raises(RunError, match=r"2 counts need 3 edges, got 2"):
        write_report(run_folder(weights={"w": {"edges": [0, 1], "counts": [1, 2], "centroids": None}}))


def test_overview(run_folder: Write, make_report: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    spec = overview_chart(make_report()).to_dict()
    assert "var(" not in json.dumps(spec)
    path = save_overview_png(run_folder(), tmp_path / "overview.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(RunError, match="damaged"):
        overview_chart({"schema_version": 1})
