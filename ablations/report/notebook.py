"""The notebook: the page's story with cells that a reader can rerun and change, executed from the records alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import IPython  # noqa: F401 -- before others draw beside the execution: matplotlib must not meet it half imported
import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ablations.report.html import Section
from ablations.report.numbers import heading

COLUMNS = ["factor", "level", "mean", "low", "high", "n", "p", "p_holm", "margin", "verdict"]


def notebook(sections: Sequence[Section], preset: str, runs: Path, notes: Sequence[str]) -> nbformat.NotebookNode:
    """The notebook, not executed; `runs` is the runs folder as seen from the notebook's own."""
    cells = [
        new_markdown_cell("\n\n".join(["# What did each design choice change?", f"Preset `{preset}`.", *notes])),
        new_code_cell(
            "from pathlib import Path\n\n"
            "from ablations.records import Records\n"
            "from ablations.report import figures\n"
            "from ablations.report.evidence import gather\n\n"
            f"places = [{runs.as_posix()!r}, {runs.name!r}]  # of the runs: as at first, or beside this notebook\n"
            "records = Records(next((place for place in places if Path(place).is_dir()), places[0]))"
        ),
    ]
    for section in sections:
        cells += _study_cells(section, preset)
    for position, cell in enumerate(cells):
        cell["id"] = f"cell-{position}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def execute(book: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells in `folder` with this interpreter; raises nbclient.exceptions.CellExecutionError if one fails."""
    root = Path(__file__).parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    client = NotebookClient(
        book, timeout=300, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    manager = client.create_kernel_manager()
    with tempfile.TemporaryDirectory() as sockets:  # files of this user alone, where ports would be open to others
        manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
        client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})


def _study_cells(section: Section, preset: str) -> list[nbformat.NotebookNode]:
    evidence, story = section.evidence, section.story
    declaration = evidence.declaration
    notes = [f"> {note}" for note in story.notes]
    text = [f"## {declaration['title']}", " ".join(story.summary), *notes, *story.references]
    cells = [
        new_markdown_cell("\n\n".join(text)),
        new_code_cell(f"evidence = gather(records, {evidence.study!r}, preset={preset!r})\nevidence.done.head()"),
    ]
    if len(evidence.effects):
        primary = evidence.primary["name"]
        cells.append(new_code_cell(f'evidence.effects.query("response == {primary!r}")[{COLUMNS}].round(4)'))
    for chapter in story.chapters:
        if chapter.cards:
            parts = [f"### {heading(chapter.label)}", f"Baseline: {chapter.baseline}. {chapter.absent}"]
            for card in chapter.cards:
                verdict = f"**{card.verdict.capitalize()}.** " if card.verdict else ""
                parts += [f"**{card.trying}**", *card.effects, f"{verdict}{card.conclusion}", " ".join(card.details)]
            cells.append(new_markdown_cell("\n\n".join(parts)))
    if story.design:
        cells.append(new_markdown_cell("\n\n".join(["### Together", *story.design])))
    if evidence.crossed:
        cells.append(new_code_cell("evidence.interactions.round(4)"))
    for drawing in section.drawings:
        cells.append(new_markdown_cell(f"### {drawing.title}\n\n{drawing.caption}"))
        cells.append(new_code_cell(drawing.code))
    return cells
