"""The HTML page and the plots: the run's figures, and nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.patches import StepPatch

from loraplex.bench.results.report import write_report
from loraplex.bench.results.result import ColdLoad, Run
from loraplex.bench.results.result_file import read, write
from loraplex.bench.results.run_plots import course
from tests.bench.runs import make_run

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "rect", "line", "circle"}


class Page(HTMLParser):
    """Checks that elements close in order, and gathers texts and what would be fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            # Of SVG's own elements, a link within the page.
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {name} {value}")
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "dd", "h1", "summary"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.handle_starttag(tag, attributes)
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.cells and {"td", "dd", "h1", "summary"} & set(self.open):
            self.cells[-1] += data


def write_page(folder: Path, *runs: Run) -> tuple[Page, str]:
    write_report(runs, html=folder / "page.html")
    text = (folder / "page.html").read_text()
    return Page(text), text


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def test_a_page_has_the_figures_the_setup_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    run = make_run("mine", max_concurrency=2, requests=20, failed=2)
    run.cold.append(ColdLoad("travel", 0.0123, 45.6, 31.5))
    page, text = write_page(tmp_path, run)
    assert page.fetched == []
    assert not re.search(r"url\((?!#)|@import|<script", text)
    for expected in (
        *("mine", "2 at once", "100", "20", "http_429:queue_full"),
        *("12.3", "45.6", "31.5", "14.1"),
        *("AMD EPYC", "1.31.1", "2026-11-21 10:11", "loraplex bench serve --label <b>"),
    ):
        assert expected in page.cells, expected
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == 3


def test_plots_are_written_as_pngs(tmp_path: Path) -> None:
    levels = [make_run("mine", max_concurrency=streams) for streams in (1, 8)]
    write_report(levels, plots=tmp_path / "plots")
    sizes = {path.name: png_size(path) for path in (tmp_path / "plots").iterdir()}
    own = {f"mine-{streams}-at-once-{plot}.png" for streams in (1, 8) for plot in ("adapters", "timeline")}
    assert set(sizes) == {"throughput-over-concurrency.png", "distributions.png"} | own
    assert all(width > 800 and height > 200 for width, height in sizes.values())


def test_a_timeline_draws_every_token_of_every_interval() -> None:
    run = make_run("mine", requests=5)
    speed, running, _ = course(run)["timeline"].axes
    drawn = {str(patch.get_label()): patch.get_data() for patch in speed.patches if isinstance(patch, StepPatch)}
    assert list(drawn) == list(run.timeline.adapters) == ["tone", "travel"]
    for name, (above, edges, below) in drawn.items():
        assert below is not None
        assert edges[0] == 0
        tokens = (above - below) * (edges[1:] - edges[:-1])
        assert tokens.tolist() == pytest.approx(run.timeline.adapters[name].output_tokens)
    assert running.patches[0].get_data().edges[-1] >= run.duration  # type: ignore[attr-defined]


def test_several_loads_are_plotted_over_rate_and_concurrency(tmp_path: Path) -> None:
    rates = [make_run("mine", request_rate=rate, speed=1 / rate) for rate in (1.0, 2.0, 4.0)]
    page, text = write_page(tmp_path, *rates)
    assert "Latency over rate" in text
    assert {"1 requests/s", "2 requests/s", "4 requests/s"} <= set(page.cells)
    levels = [make_run(label, max_concurrency=streams) for label in ("a", "b") for streams in (1, 8)]
    page, text = write_page(tmp_path, *levels)
    assert "Over concurrency" in text


def test_a_run_without_its_requests_has_a_page_too(tmp_path: Path) -> None:
    write(make_run("mine"), tmp_path / "brief.json", detailed=False)
    page, text = write_page(tmp_path, *read(tmp_path / "brief.json"))
    assert "100" in page.cells
    assert "Distribution of" not in text


@pytest.mark.parametrize("count", [1, 30])
def test_few_adapters_and_many(tmp_path: Path, count: int) -> None:
    models = [f"customer-{index}" for index in range(count)]
    page, text = write_page(tmp_path, make_run("mine", models=models, requests=2 * count))
    assert ("By adapter" in text) == (count > 1)
    assert ("21 others" in text) == (count > 10)
    assert page.fetched == []
