"""The tables of a study: exact as CSV, and as people read them in Markdown, LaTeX and on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.report.evidence import Evidence
from ablations.report.numbers import MINUS, decimals, heading, number, scale, unit_of_difference, with_unit
from ablations.statistics import ALPHA, binomial_error, mean_interval, one_factor_runs, proportion_interval

LATEX = {MINUS: "$-$", "±": r"$\pm$", "≥": r"$\geq$"}


@dataclass(frozen=True)
class Table:
    """`exact` has full precision and one number per column, `shown` the same as text to read."""

    name: str
    title: str
    note: str  # how to read it
    exact: pd.DataFrame
    shown: pd.DataFrame

    def save(self, folder: Path) -> list[Path]:
        """Write `<name>.csv` (exact), `<name>.md` and `<name>.tex` (as shown)."""
        texts = {
            "csv": self.exact.to_csv(index=False),
            "md": markdown(self.shown),
            "tex": latex(self.shown),
        }
        paths = [folder / f"{self.name}.{kind}" for kind in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text)
        return paths


def tables(evidence: Evidence) -> list[Table]:
    """All tables that the evidence allows; each is named `<study>_<table>`."""
    found = [means(evidence)] if len(evidence.runs) else []
    if len(evidence.effects):
        found.append(comparisons(evidence))
    if len(evidence.main_effects):
        found.append(crossed(evidence, "main_effects", "Main effects, averaged over the other factors"))
    if len(evidence.interactions):
        found.append(crossed(evidence, "interactions", "Interactions, beyond the sum of both changes alone"))
    return found


def means(evidence: Evidence) -> Table:
    """Every level's mean in every response, with half of its 95 % t interval; medians for times that may never come."""
    declaration, runs = evidence.declaration, evidence.runs
    responses = [r for r in declaration["responses"] if r["name"] in runs]
    labels, exact, shown = _labels(evidence), [], []
    for (factor, level), mine in one_factor_runs(runs, declaration).groupby(["factor", "level"], sort=False):
        done, diverged = mine[mine["status"] == "done"], int((mine["status"] == "diverged").sum())
        low, high = proportion_interval(diverged, len(mine))
        numbers: dict[str, Any] = {"factor": factor, "level": level, "runs": len(mine), "done": len(done)}
        numbers |= {"diverged": diverged, "diverged_rate_low": low, "diverged_rate_high": high}
        texts = {"Factor": labels[str(factor)], "Level": str(level), "Runs done": f"{len(done)} of {len(mine)}"}
        for response in responses:
            counted = mine[mine["status"] != "failed"] if response.get("measure") == "median" else done
            of_response, text = _summary(counted[response["name"]].astype(float), response, evidence.test_examples)
            numbers |= {f"{response['name']}_{what}": value for what, value in of_response.items()}
            texts[with_unit(response)] = text
        exact.append(numbers)
        shown.append(texts)
    note = "Mean ± half of the 95 % t interval over seeds; times to the target are medians, a miss counted as infinite."
    if evidence.test_examples:
        note += (
            f" In brackets, the standard error that {evidence.test_examples:,} test examples alone leave an accuracy."
        )
    return Table(f"{evidence.study}_means", "Means", note, pd.DataFrame(exact), pd.DataFrame(shown))


def comparisons(evidence: Evidence) -> Table:
    """`statistics.effects`: every level against its baseline in every response."""
    responses = {r["name"]: r for r in evidence.declaration["responses"]}
    labels = _labels(evidence)
    shown = [_comparison(row, responses[row["response"]], labels) for _, row in evidence.effects.iterrows()]
    note = (
        "Level against baseline on the same seeds, with 95 % intervals. What a hypothesis stated before the run "
        "has a verdict, and p corrected by Holm. All else explores: better, worse or not detected, with p corrected by "
        "Benjamini and Hochberg. Effect sizes are Hedges' g, in standard deviations between seeds; better on is the "
        "share of seeds on which the level was."
    )
    return Table(
        f"{evidence.study}_effects",
        "Every comparison",
        note,
        evidence.effects.reset_index(drop=True),
        pd.DataFrame(shown),
    )


def crossed(evidence: Evidence, kind: str, title: str) -> Table:
    """`statistics.main_effects` or `statistics.interactions` in the primary response."""
    frame: pd.DataFrame = getattr(evidence, kind)
    response, labels, shown = evidence.primary, _labels(evidence), []
    for _, row in frame.iterrows():
        texts = {"Factor": labels[row["factor"]], "Level": row["level"]}
        if kind == "interactions":
            texts |= {"With": labels[row["other_factor"]], "at": row["other_level"]}
        shown.append(
            texts
            | {
                "Settings": str(row["settings"]),
                "Change": _change(row, response),
                "95 % interval": _interval(row, response),
            }
            | {"n": str(int(row["n"])), "p": _p(row.get("q", row["p"]))}
        )
    note = (
        f"In {evidence.primary['label']}, contrasts within each seed, averaged over the settings of the other factors. "
    )
    note += "p is corrected by Benjamini and Hochberg." if kind == "interactions" else "p is not corrected."
    return Table(f"{evidence.study}_{kind}", title, note, frame, pd.DataFrame(shown))


def markdown(frame: pd.DataFrame) -> str:
    """A pipe table."""
    lines = [list(map(str, frame.columns)), ["---"] * frame.shape[1], *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"


def latex(frame: pd.DataFrame) -> str:
    """A tabular for the package booktabs."""
    text = (
        frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1).to_latex(hrules=True)
    )
    return re.sub("|".join(LATEX), lambda found: LATEX[found[0]], text)


def _labels(evidence: Evidence) -> dict[str, str]:
    return {factor["name"]: heading(factor["label"]) for factor in evidence.declaration["factors"]}


def _summary(values: pd.Series, response: Mapping[str, Any], examples: int) -> tuple[dict[str, float], str]:
    by = scale(response)
    if response.get("measure") == "median":
        arrived = values.dropna()
        median = float(np.median(arrived)) if len(arrived) else math.nan
        missed = int(np.isinf(arrived).sum())
        text = "never" if math.isinf(median) else number(median) if math.isfinite(median) else "not measured"
        return {"median": median, "missed": missed}, text + (f" ({missed} missed)" if missed else "")
    mean, low, high = mean_interval(values)
    numbers = {"mean": mean, "low": low, "high": high}
    if not math.isfinite(mean):
        return numbers, "not measured"
    half = (high - low) / 2 * by
    text = f"{number(mean * by, decimals(half))} ± {number(half, decimals(half))}" if half > 0 else number(mean * by)
    if examples and response["kind"] == "accuracy" and response["unit"] == "%" and 0 <= mean <= 1:
        numbers["test_set_error"] = binomial_error(mean, examples)
        text += f" [{number(by * numbers['test_set_error'], decimals(by * numbers['test_set_error']))}]"
    return numbers, text


def _comparison(row: pd.Series, response: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    is_planned, unit = bool(row["expects"]), _scale_of(row, response)[1].strip()
    return {
        "Factor": labels[row["factor"]],
        "Level": row["level"],
        "Response": heading(response["label"]) + (f" ({unit})" if unit else ""),
        "Change": _change(row, response),
        "95 % interval": _interval(row, response),
        "n": str(int(row["n"])),
        "p": _p(row["p_holm"] if is_planned else row["q"]),
        "Effect size": number(row["effect_size"], 2, sign=True) if math.isfinite(row["effect_size"]) else "",
        "Better on": f"{100 * row['improvement']:.0f} %" if math.isfinite(row["improvement"]) else "",
        "Verdict": row["verdict"] or _explored(row, response),
    }


def _explored(row: pd.Series, response: Mapping[str, Any]) -> str:
    """What may be said where no hypothesis was stated before the run."""
    if row["measure"] == "exact" and row["mean"] == 0:
        return ""
    if row["measure"] != "exact" and not row["q"] <= ALPHA:
        return "not detected" if math.isfinite(row["q"]) else ""
    is_higher = row["mean"] > 0 or row["value"] > row["baseline"]
    return "better" if is_higher == (response["better"] == "higher") else "worse"


def change_texts(row: pd.Series, response: Mapping[str, Any]) -> dict[str, str]:
    """`Change`, `95 % interval` and their `unit`, with its leading space, of a row with a `measure`."""
    unit = _scale_of(row, response)[1]
    return {"Change": _change(row, response), "95 % interval": _interval(row, response), "unit": unit}


def _change(row: pd.Series, response: Mapping[str, Any]) -> str:
    if not math.isfinite(row["mean"]):
        return "never" if math.isinf(row["mean"]) else ""
    by, _ = _scale_of(row, response)
    return number(row["mean"] * by, _digits(row, by), sign=True)


def _interval(row: pd.Series, response: Mapping[str, Any]) -> str:
    by, _ = _scale_of(row, response)
    if not (math.isfinite(row["low"]) and math.isfinite(row["high"])):
        return ""
    return " to ".join(number(row[side] * by, _digits(row, by), sign=True) for side in ("low", "high"))


def _scale_of(row: pd.Series, response: Mapping[str, Any]) -> tuple[float, str]:
    if row.get("measure") in ("ratio", "exact"):
        return 100.0, " %"
    return scale(response), unit_of_difference(response)


def _digits(row: pd.Series, by: float) -> int | None:
    half = (row["high"] - row["low"]) / 2 * by
    is_rounded = row.get("measure") != "median" and math.isfinite(half) and half > 0
    return decimals(half) if is_rounded else None


def _p(p: float) -> str:
    return "" if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.2g}"
