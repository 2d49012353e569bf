"""The page: one self-contained HTML file with figures inline, for light and dark, screen, phone and paper."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from ablations.report.evidence import Evidence
from ablations.report.figures import GRID, INK, MUTED, Drawing
from ablations.report.figures.comparisons import forest_reach
from ablations.report.narrative import Card, Story
from ablations.report.numbers import decimals, heading, number, scale, with_unit
from ablations.report.tables import Table
from ablations.statistics import RULES

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
    """One study of a report: its evidence, its story, its figures and its tables."""

    evidence: Evidence
    story: Story
    drawings: Sequence[Drawing]
    tables: Sequence[Table]

    @property
    def verdicts(self) -> dict[str, list[Card]]:
        """The cards of each verdict."""
        cards = [card for chapter in self.story.chapters for card in chapter.cards]
        found = {word: [card for card in cards if card.verdict == word] for word in MARKS}
        return {word: of_word for word, of_word in found.items() if of_word}


def page(sections: Sequence[Section], svgs: Mapping[str, str], preset: str, command: str, notes: Sequence[str]) -> str:
    """The report's HTML; `svgs` are the drawings' texts by name, `command` rebuilds it, `notes` stand on top."""
    template = _templates().get_template("report.html")
    return template.render(sections=sections, svgs=svgs, preset=preset, command=command, notes=notes, rules=RULES)


def comparison_page(
    comparisons: Sequence[tuple[Any, Sequence[tuple[Drawing, str]]]], a: str, b: str, rules: Any, command: str
) -> str:
    """The HTML of two runs folders side by side; `comparisons` come with their drawings and SVG texts."""
    template = _templates().get_template("comparison.html")
    return template.render(comparisons=comparisons, a=a, b=b, rules=rules, command=command)


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ablations.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "inline": inline,
        "fine": fine,
        "folded": folded,
        "heading": heading,
        "with_unit": with_unit,
    }
    environment.globals |= {"bar": bar, "marks": MARKS, "values": pair_values, "levels_of": levels_of, "anchor": anchor}
    return environment


def inline(svg: str, name: str) -> markupsafe.Markup:
    """An SVG file as part of the page: its own ids, and the page's colours, so that it follows light and dark."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub("|".join(PAGE_COLOURS), lambda found: PAGE_COLOURS[found[0]], svg)
    return markupsafe.Markup(svg.replace("<svg ", '<svg aria-hidden="true" ', 1))


def fine(text: str) -> markupsafe.Markup:
    """A sentence with its intervals set smaller, so that it reads on, and with its numbers kept beside their units."""
    escaped = str(markupsafe.escape(text))
    kept = re.sub(r"(?<=\d) (?=%|ms|s\b)|(?<=\b[np]) (?=[=&])|(?<=[=;]) (?=\d)", "\N{NO-BREAK SPACE}", escaped)
    return markupsafe.Markup(re.sub(r"\(([^()]*\bn\s=[^()]*)\)", r'<span class="fine">(\1)</span>', kept))


def folded(message: str) -> markupsafe.Markup:
    """A message's last line, which of a traceback says most; what stands above it opens on demand."""
    above, _, last = message.strip().rpartition("\n")
    if not above:
        return markupsafe.escape(last)
    return markupsafe.Markup("<details><summary>{}</summary>{}</details>").format(last, above)


def bar(card: Card, section: Section) -> dict[str, Any] | None:
    """Where a card's small interval plot has its parts, in per cent of its width; None if there is nothing to draw.

    The scale is that of the study's forest; `beyond` names the sides on which the interval goes on outside.
    """
    rows = pd.DataFrame([c.row for chapter in section.story.chapters for c in chapter.cards])
    span = 1.08 * forest_reach(rows)
    if not span or not math.isfinite(card.row["mean"]):
        return None
    places = {name: 50 + 50 * card.row[name] / span for name in ("mean", "low", "high")}
    places = {name: place for name, place in places.items() if math.isfinite(place)}
    beyond = [
        side for side, is_so in (("low", min(places.values()) < 0), ("high", max(places.values()) > 100)) if is_so
    ]
    margin = 50 * card.row["margin"] / span if math.isfinite(card.row["margin"]) else 0.0
    return {name: min(max(place, 0.0), 100.0) for name, place in places.items()} | {"margin": margin, "beyond": beyond}


def pair_values(card: Card, section: Section) -> list[dict[str, str]]:
    """The pairs of runs behind a card, as rows of text."""
    by, rows = scale(section.evidence.primary), []
    spread = float((card.pairs["level"] - card.pairs["baseline"]).std()) * by
    digits = decimals(spread) + 1 if spread > 0 else None
    for seed, pair in zip(card.pairs.index, card.pairs.to_dict("records"), strict=True):
        numbers = {side: number(pair[side] * by, digits) for side in ("level", "baseline")}
        numbers["difference"] = number((pair["level"] - pair["baseline"]) * by, digits, sign=True)
        rows.append({"seed": str(seed)} | numbers | {side: pair[side] for side in ("level_key", "baseline_key")})
    return rows


def anchor(card: Card, section: Section) -> str:
    """Where a card stands on the page."""
    return re.sub(r"[^\w-]+", "-", f"{section.evidence.study}-{card.row['factor']}-{card.level}")


def levels_of(run: dict[str, Any], evidence: Evidence) -> str:
    """`cell=gru depth=1`."""
    names = [factor["name"] for factor in evidence.declaration["factors"] if factor["name"] in run]
    return " ".join(f"{name}={run[name]}" for name in names)
