"""The report of a runs folder: page, notebook, figures and table, from the records alone."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ablations.records import Records
from ablations.report.evidence import Evidence, gather
from ablations.report.figures import draw
from ablations.report.html import Section, page
from ablations.report.narrative import tell
from ablations.report.notebook import executed_notebook
from ablations.report.tables import tables


@dataclass(frozen=True)
class Summary:
    """`lines`: what was found, for the terminal. `files`: what was written, the page first."""

    lines: list[str]
    files: list[Path]


def build(
    records: Records,
    out: Path,
    preset: str,
    studies: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Summary:
    """Write index.html, report.ipynb (executed), figures/, tables/ and runs.csv to `out`, for the runs of one preset.

    `studies`: which, all on record by default. `progress` is told what is being done. Raises FileNotFoundError for a
    study without records.
    """
    say = progress or (lambda what: None)
    names = list(records.studies() if studies is None else studies)
    nothing = f"No study has runs under {records.root}, so nothing can be concluded; `ablate run STUDY` makes some."
    notes = [] if names else [nothing]
    folders = figures, texts = out / "figures", out / "tables"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    sections, files, svgs = list[Section](), list[Path](), dict[str, str]()
    index, book, tidy = out / "index.html", out / "report.ipynb", out / "runs.csv"
    coming: dict[str, Future[Section]] = {name: Future() for name in names}
    with ThreadPoolExecutor(1) as beside:  # the notebook runs in a process of its own, while this one does the same
        notebook_written = beside.submit(_write_notebook, coming, preset, records, book, notes)
        try:
            for name in names:
                say(f"{name}: reading records")
                evidence = gather(records, name, preset)
                say(f"{name}: telling what they say")
                sections.append(Section(evidence, tell(evidence), draw(evidence), tables(evidence)))
                coming[name].set_result(sections[-1])
        finally:
            for section_to_come in coming.values():
                section_to_come.cancel()  # after an error; those that came stay
        say("drawing figures and running the notebook")
        for section in sections:
            written = [path for table in section.tables for path in table.save(texts)]
            for drawing in section.drawings:
                written += drawing.save(figures)
                svgs[drawing.name] = written[-1].read_text()
            for folder in folders:
                for stale in set(folder.glob(f"{section.evidence.study}_*")) - set(written):
                    stale.unlink()  # of another preset, or of runs that are gone
            files += written
        _tidy([section.evidence for section in sections]).to_csv(tidy, index=False)
        index.write_text(page(sections, svgs, preset, _command(records, out, preset, studies), notes))
        notebook_written.result()
    lines = [*notes, *(line for section in sections for line in _lines(section))]
    return Summary(lines, [index, book, tidy, *files])


def _lines(section: Section) -> list[str]:
    return [
        f"{section.evidence.study}: {section.evidence.declaration['title']}",
        *(f"  {sentence}" for sentence in [*section.story.summary[1:], *section.story.notes]),
        *(f"  {sentence}" for sentence in section.story.design if section.evidence.crossed),
    ]


def _tidy(evidence: Sequence[Evidence]) -> pd.DataFrame:
    tables = [e.runs for e in evidence if len(e.runs)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["study", "preset", "seed", "key"])


def _command(records: Records, out: Path, preset: str, studies: Sequence[str] | None) -> str:
    return shlex.join(
        ["ablate", "report", *(studies or ()), "--preset", preset, "--runs", str(records.root), "--out", str(out)]
    )


def _write_notebook(
    sections: Mapping[str, Future[Section]], preset: str, records: Records, path: Path, notes: Sequence[str]
) -> None:
    import nbformat

    runs = Path(os.path.relpath(records.root.resolve(), path.parent.resolve()))
    nbformat.write(executed_notebook(sections, preset, runs, notes, path.parent), path)
