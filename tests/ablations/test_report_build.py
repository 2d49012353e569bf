"""Claims of the whole report: needs the records alone, says what it cannot conclude, comes out the same twice."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import synthetic
from PIL import Image

import ablations.report
from ablations.records import Records
from ablations.report import build
from ablations.report.evidence import gather
from ablations.report.figures import draw
from ablations.report.html import folded

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "recurve", "ablations.training", "ablations.models", "ablations.studies.epidemic"):
            raise AssertionError(f"a report imports {name}")
sys.meta_path.insert(0, Block())
from ablations.cli import main
sys.exit(main(["report", "--runs", sys.argv[1], "--out", sys.argv[2]]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    records = Records(tmp_path_factory.mktemp("runs"))
    synthetic.write_study(records, synthetic.EPIDEMIC, seeds=5)
    synthetic.write_study(records, synthetic.VISION, seeds=5)
    base = synthetic.conditions(synthetic.EPIDEMIC)[0]
    synthetic.write_run(records, synthetic.EPIDEMIC, base, 30, status="failed", message="ValueError: <b> & more")
    return records


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    """A report built by a process in which torch cannot be imported; the notebook's kernel included."""
    out = tmp_path_factory.mktemp("report")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", BUILD, runs.root, out], check=True, env=environment, cwd=out)
    return out


@pytest.fixture(scope="module")
def drawings(runs, tmp_path_factory):
    """Every figure there is: of one factor at a time, and of a factorial with native timings."""
    records = Records(tmp_path_factory.mktemp("crossed"))
    synthetic.write_crossed(records, synthetic.EPIDEMIC, ["cell", "history", "depth"], seeds=4)
    evidence = gather(records, "epidemic", "quick")
    native = evidence.runs["seconds_per_step"] * np.linspace(0.9, 1.6, len(evidence.runs))
    crossed = replace(evidence, runs=evidence.runs.assign(native_seconds_per_step=native))
    return [*draw(gather(runs, "vision", "quick")), *draw(crossed)]


@pytest.fixture
def quick_build(monkeypatch):
    """`build` that leaves the notebook unexecuted: starting a kernel takes seconds."""
    monkeypatch.setattr(ablations.report.notebook, "execution", lambda book, folder: nullcontext(book.cells.append))
    return build


class Elements(HTMLParser):
    """Collects tags, ids and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.ids, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        for name, content in attrs:
            if name == "id":
                self.ids.append(content)
            elif name in ("src", "href", "xlink:href"):
                self.addresses.append(content)


def test_report_needs_no_torch_and_writes_every_file(report):
    figures = {path.name for path in (report / "figures").iterdir()}
    for name in ("epidemic_forest", "epidemic_forecasts", "epidemic_learning_curves", "epidemic_levels",
                 "epidemic_parameters", "vision_shift_accuracy", "vision_forest"):  # fmt: skip
        assert {f"{name}.png", f"{name}.svg"} <= figures
    assert all(path.stat().st_size > 1000 for path in report.rglob("*") if path.is_file())


def test_page_asks_for_nothing_outside_itself(report):
    text = (report / "index.html").read_text()
    page = Elements(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "img", "iframe"})
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert all((report / a).exists() for a in page.addresses if not a.startswith("#"))
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_page_has_unique_ids_and_no_dangling_references(report):
    page = Elements((report / "index.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)


def test_every_figure_has_an_alternative_text(report):
    page = Elements((report / "index.html").read_text())
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) > 10
    assert all(len(attributes["aria-label"]) > 20 for attributes in images)


def test_failure_messages_are_shown_as_text(report):
    text = (report / "index.html").read_text()
    assert "ValueError: &lt;b&gt; &amp; more" in text


def test_of_a_traceback_the_last_line_stands_out_and_the_rest_opens_on_demand():
    shown = folded("Traceback:\n  in <module>\nValueError: <b>")
    assert shown == ("<details><summary>ValueError: &lt;b&gt;</summary>Traceback:\n  in &lt;module&gt;</details>")
    assert folded("loss is NaN") == "loss is NaN"


def test_csv_is_the_tidy_table_of_the_report(report, runs):
    table = pd.read_csv(report / "runs.csv")
    assert len(table) == len(runs.table())
    assert set(table["preset"]) == {"quick"}
    assert {"study", "seed", "key", "status", "error", "accuracy", "parameters", "seconds_per_step"} <= set(table)


def test_notebook_is_executed_without_errors_and_shows_the_figures(report):
    book = nbformat.read(report / "report.ipynb", as_version=4)
    nbformat.validate(book)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures == len(list((report / "figures").glob("*.png")))
    assert "Let's try an LSTM" in "".join(cell.source for cell in book.cells)


def test_figures_are_of_publication_size_and_not_blank(report):
    for path in (report / "figures").glob("*.png"):
        image = Image.open(path)
        assert image.width >= 1000
        assert len(image.convert("L").getcolors()) > 20


def test_same_records_give_the_same_figures_and_page(runs, report, tmp_path, quick_build):
    quick_build(runs, tmp_path, "quick", ["vision"])
    files = [path for folder in ("figures", "tables") for path in (report / folder).glob("vision_*")]
    assert len(files) >= 20
    for path in files:
        assert path.read_bytes() == (tmp_path / path.relative_to(report)).read_bytes(), path.name
    pages = [(folder / "index.html").read_text() for folder in (report, tmp_path)]
    told = [re.search(r'<h2 id="vision">.*</main>', page, re.DOTALL)[0] for page in pages]
    assert told[0] == told[1]


def test_no_label_of_a_figure_is_clipped(drawings):
    for drawing in drawings:
        drawing.figure.draw_without_rendering()
        tight, size = drawing.figure.get_tightbbox(), drawing.figure.get_size_inches()
        assert tight.x0 >= -0.02, drawing.name
        assert tight.y0 >= -0.02, drawing.name
        assert tight.x1 <= size[0] + 0.02, drawing.name
        assert tight.y1 <= size[1] + 0.02, drawing.name


def test_tables_say_the_same_as_csv_markdown_and_latex(report):
    for path in (report / "tables").glob("*.csv"):
        exact = pd.read_csv(path)
        lines = path.with_suffix(".md").read_text().splitlines()
        rows = [line for line in path.with_suffix(".tex").read_text().splitlines() if line.endswith(r"\\")]
        assert len(lines) - 2 == len(rows) - 1 == len(exact)
        assert {line.count(" | ") for line in lines} == {lines[0].count(" | ")}
        assert not re.search(r"(?<!\\)[%&]\s*$", "\n".join(rows))
    means = pd.read_csv(report / "tables" / "epidemic_means.csv").set_index("level")
    runs = pd.read_csv(report / "runs.csv")
    lstm = runs[(runs["cell"] == "lstm") & (runs["status"] == "done")]
    assert means.loc["lstm", "error_mean"] == pytest.approx(lstm["error"].mean())


@pytest.mark.slow
def test_ten_thousand_runs_are_reported_within_a_minute(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # what is tested is reading
    records = Records(tmp_path / "runs")
    synthetic.write_crossed(records, synthetic.EPIDEMIC, ["cell", "history", "depth"], seeds=260)
    synthetic.write_study(records, synthetic.VISION, seeds=665)
    before = os.times()
    build(records, tmp_path / "out", "quick")
    after = os.times()
    assert sum(after[:4]) - sum(before[:4]) < 60  # of processors, this process and the notebook's


SMALL = synthetic.EPIDEMIC | {"factors": synthetic.EPIDEMIC["factors"][::2], "figures": []}  # cell and depth
BASE, LSTM = synthetic.conditions(SMALL)[:2]


def write(records, levels, seeds=3, **how):
    records.declare(SMALL)
    for chosen in levels:
        for seed in range(seeds):
            synthetic.write_run(records, SMALL, chosen, seed, **how)


def only_old_versions(records):
    write(records, [BASE, LSTM], version="0")


def mixed_versions(records):
    write(records, [BASE, LSTM])
    write(records, [LSTM], version="0", seeds=2)


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (lambda records: None, "No study has runs under"),
        (lambda records: records.declare(synthetic.EPIDEMIC), "nothing is known yet"),
        (lambda records: write(records, [BASE, LSTM], seeds=1), "no interval and no verdict can be given"),
        (lambda records: write(records, [BASE, LSTM], status="failed", message="boom"), "nothing can be concluded"),
        (lambda records: write(records, [BASE]), "there is nothing to compare"),
        (lambda records: write(records, [LSTM]), "no pair of level and baseline"),
        (lambda records: write(records, [BASE, LSTM], preset="smoke"), "6 runs of preset smoke exist"),
        (mixed_versions, "2 runs of another study version left out; version 1, the newest, is used"),
        (only_old_versions, "6 runs of another study version left out"),
        (lambda records: write(records, [BASE, LSTM], details=False), "1 hypothesis tested on 6 finished runs"),
        (lambda records: write(records, [BASE, LSTM | {"depth": "2"}]), "changed several factors at once"),
    ],
    ids=["nothing", "declared", "one seed", "failed", "single level", "no baseline", "other preset", "mixed versions",
         "old version", "no details", "crossed"],
)  # fmt: skip
def test_poor_records_are_reported_plainly(tmp_path, quick_build, fill, said):
    records = Records(tmp_path / "runs")
    fill(records)
    summary = quick_build(records, tmp_path / "out", "quick")
    assert said in "\n".join(summary.lines)
    assert said in (tmp_path / "out" / "index.html").read_text()
    assert all(path.exists() for path in summary.files)


def test_what_was_repaired_in_the_data_stands_on_the_page_and_in_the_notebook(tmp_path, quick_build):
    records = Records(tmp_path / "runs")
    write(records, [BASE, LSTM], repaired=["2 values filled", "the season of 2011 is left out"])
    summary = quick_build(records, tmp_path / "out", "quick")
    said = "Repaired in the data, or left out of them, before any run: 2 values filled; the season of 2011 is left out."
    book = nbformat.read(tmp_path / "out" / "report.ipynb", as_version=4)
    for text in ("\n".join(summary.lines), summary.files[0].read_text(), "\n".join(cell.source for cell in book.cells)):
        assert said in text


def test_diverged_level_is_named_and_gets_no_verdict_from_its_numbers(tmp_path, quick_build):
    records = Records(tmp_path / "runs")
    write(records, [BASE])
    write(records, [LSTM], status="diverged", message="loss is NaN after 3 steps")
    quick_build(records, tmp_path / "out", "quick")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "loss is NaN after 3 steps" in page
    assert "0 of 3" in page


def test_runs_that_failed_before_any_response_are_told_although_they_left_curves(tmp_path, quick_build):
    records = Records(tmp_path / "runs")
    write(records, [BASE, LSTM])
    for path in records.root.glob("*/*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed", "responses": {}}))
    summary = quick_build(records, tmp_path / "out", "quick")
    assert "No run finished, so nothing can be concluded." in "\n".join(summary.lines)


def test_unknown_study_is_an_error_that_names_it(tmp_path, quick_build):
    with pytest.raises(FileNotFoundError, match="no study 'epidemik'"):
        quick_build(Records(tmp_path / "runs"), tmp_path / "out", "quick", studies=["epidemik"])


def test_figures_of_another_preset_do_not_stay_behind(tmp_path, quick_build):
    records = Records(tmp_path / "runs")
    write(records, [BASE, LSTM])
    quick_build(records, tmp_path / "out", "quick")
    assert list((tmp_path / "out" / "figures").iterdir())
    quick_build(records, tmp_path / "out", "full")
    assert not list((tmp_path / "out" / "figures").iterdir())
