"""The page: one self-contained HTML file with figures inline, for light and dark, screen, phone and paper."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from ablations.report.evidence import Evidence
from ablations.report.figures import GRID, INK, MUTED, Drawing
from ablations.report.narrative import Card, Story
from ablations.report.numbers import decimals, heading, number, scale, with_unit
from ablations.statistics import RULES, mean_interval, one_factor_runs

MARKS = {"supported": "✓", "contradicted": "✗", "equivalent": "≈", "undecided": "?"}
PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    "#ffffff": "var(--card)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--orange)",
    "#009e73": "var(--green)",
}


@dataclass(frozen=True)
class Section:
    """One study on the page: its evidence, its story, and its drawings with their SVG text."""

    evidence: Evidence
    story: Story
    drawings: Sequence[tuple[Drawing, str]]

    @property
    def verdicts(self) -> dict[str, int]:
        found = [card.verdict for chapter in self.story.chapters for card in chapter.cards if card.verdict]
        return {word: found.count(word) for word in MARKS if word in found}


def page(sections: Sequence[Section], preset: str, command: str, notes: Sequence[str]) -> str:
    """The page's HTML; `command` rebuilds it, `notes` stand on top."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ablations.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"inline": inline, "fine": fine, "heading": heading}
    environment.globals |= {"bar": bar, "means": means, "marks": MARKS}
    template = environment.get_template("report.html")
    return template.render(sections=sections, preset=preset, command=command, notes=notes, rules=RULES)


def inline(svg: str, name: str) -> markupsafe.Markup:
    """An SVG file as part of the page: its own ids, and the page's colours, so that it follows light and dark."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, variable)
    return markupsafe.Markup(svg.replace("<svg ", '<svg aria-hidden="true" ', 1))


def fine(text: str) -> markupsafe.Markup:
    """A sentence with its intervals set smaller, so that it reads on, and with its numbers kept beside their units."""
    escaped = str(markupsafe.escape(text))
    kept = re.sub(r"(?<=\d) (?=%|ms|s\b)|(?<=\b[np]) (?=[=&])|(?<=[=;]) (?=\d)", "\N{NO-BREAK SPACE}", escaped)
    return markupsafe.Markup(re.sub(r"\(([^()]*\bn\s=[^()]*)\)", r'<span class="fine">(\1)</span>', kept))


def bar(card: Card, section: Section) -> dict[str, float] | None:
    """Where a card's small interval plot has its parts, in per cent of its width; None if there is nothing to draw."""
    rows = [c.row for chapter in section.story.chapters for c in chapter.cards]
    ends = [abs(row[name]) for row in rows for name in ("mean", "low", "high", "margin") if name in row]
    span = 1.08 * max((end for end in ends if math.isfinite(end)), default=0.0)
    if not span or not math.isfinite(card.row["mean"]):
        return None
    return {
        name: 50 + 50 * card.row[name] / span for name in ("mean", "low", "high") if math.isfinite(card.row[name])
    } | {"margin": 50 * card.row["margin"] / span if math.isfinite(card.row["margin"]) else 0.0}


def means(evidence: Evidence) -> dict[str, Any]:
    """The table of means per level: a heading per response and rows of factor, level, runs and cells."""
    responses = [r for r in evidence.declaration["responses"] if r["name"] in evidence.runs]
    labels = {factor["name"]: heading(factor["label"]) for factor in evidence.declaration["factors"]}
    rows = []
    for (factor, level), mine in one_factor_runs(evidence.runs, evidence.declaration).groupby(
        ["factor", "level"], sort=False
    ):
        done = mine[mine["status"] == "done"]
        cells = [_cell(done[r["name"]], r) for r in responses]
        rows.append({"factor": labels[factor], "level": level, "done": len(done), "all": len(mine), "cells": cells})
    return {"headings": [with_unit(response) for response in responses], "rows": rows}


def _cell(values: pd.Series, response: dict[str, Any]) -> str:
    mean, low, high = (x * scale(response) for x in mean_interval(values.astype(float)))
    if not math.isfinite(mean):
        return "not measured"
    if not math.isfinite(low):
        return number(mean)
    half = (high - low) / 2
    return f"{number(mean, decimals(half))} ± {number(half, decimals(half))}"
