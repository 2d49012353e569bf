"""The notebook: the page's story with cells that a reader can rerun and change, executed from the records alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import IPython  # noqa: F401 -- before others draw beside the execution: matplotlib must not meet it half imported
import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ablations.report.html import Section
from ablations.report.numbers import heading

COLUMNS = ["factor", "level", "mean", "low", "high", "n", "p", "p_holm", "margin", "verdict"]


def executed_notebook(
    sections: Mapping[str, Future[Section]], preset: str, runs: Path, notes: Sequence[str], folder: Path
) -> nbformat.NotebookNode:
    """The notebook, executed in `folder`; `runs` is the runs folder as seen from there.

    Each study is read from the records at once, and its story told when its section comes. Raises
    nbclient.exceptions.CellExecutionError if a cell fails, and CancelledError if a section does not come.
    """
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = new_notebook(metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    with execution(book, folder) as add:
        add(new_markdown_cell("\n\n".join(["# What did each design choice change?", f"Preset `{preset}`.", *notes])))
        add(new_code_cell(
            "from pathlib import Path\n\n"
            "from ablations.records import Records\n"
            "from ablations.report import figures\n"
            "from ablations.report.evidence import gather\n\n"
            f"places = [{runs.as_posix()!r}, {runs.name!r}]  # of the runs: as at first, or beside this notebook\n"
            "records = Records(next((place for place in places if Path(place).is_dir()), places[0]))"
        ))  # fmt: skip
        for study, section in sections.items():
            opening = new_markdown_cell()
            add(opening)
            add(new_code_cell(f"evidence = gather(records, {study!r}, preset={preset!r})\nevidence.done.head()"))
            opening.source = _opening(section.result())
            for cell in _cells(section.result()):
                add(cell)
    for position, cell in enumerate(book.cells):
        cell["id"] = f"cell-{position}"
    return book


@contextmanager
def execution(book: nbformat.NotebookNode, folder: Path) -> Iterator[Callable[[nbformat.NotebookNode], None]]:
    """Starts a kernel of this interpreter in `folder`; gives what adds a cell to the book and runs it."""
    root = Path(__file__).parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    client = NotebookClient(
        book, timeout=300, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    manager = client.create_kernel_manager()

    def add(cell: nbformat.NotebookNode) -> None:
        book.cells.append(cell)
        client.execute_cell(cell, len(book.cells) - 1)

    with tempfile.TemporaryDirectory() as sockets:  # files of this user alone, where ports would be open to others
        manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
        with client.setup_kernel(env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}):
            yield add


def _opening(section: Section) -> str:
    notes = [f"> {note}" for note in section.story.notes]
    title = f"## {section.evidence.declaration['title']}"
    return "\n\n".join([title, " ".join(section.story.summary), *notes, *section.story.references])


def _cells(section: Section) -> list[nbformat.NotebookNode]:
    """What follows a study's opening and its evidence."""
    evidence, story = section.evidence, section.story
    cells = []
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
