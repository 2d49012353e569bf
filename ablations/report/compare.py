"""Two runs folders side by side: the same conditions and seeds on two machines, versions or kernels, with verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.design import DesignError
from ablations.records import Records
from ablations.report.evidence import Evidence, gather
from ablations.report.figures import Drawing, forest, timing_ratios
from ablations.report.html import comparison_page
from ablations.report.numbers import count, heading, in_sentence, listing, number, scale, with_unit
from ablations.report.tables import Table, change_texts
from ablations.statistics import (
    ALPHA,
    Difference,
    equivalence_p,
    holm,
    paired_difference,
    paired_median,
    paired_ratio,
    seeds_to_decide,
)
from ablations.statistics.paired import difference_of

TIME_MARGIN = 0.05  # a smaller change of a time would change nobody's plans
WORDS = ("better", "worse", "equivalent", "identical", "undecided")
RULES = (
    ("better", "B was detected to be better than A (Holm-corrected p at most 0.05), or is by the same amount in every "
     "pair, and was not shown to be within the margin"),
    ("worse", "the same in the other direction"),
    ("equivalent", "the difference was shown to be smaller than the margin (two one-sided t tests, Holm-corrected): "
     "the study's smallest stated margin for its primary response, 5 % for times"),
    ("identical", "every pair of runs has the same value"),
    ("undecided", "the data show none of these; responses without a margin can be better, worse or undecided only"),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One study in both folders. `rows`: a row per condition and response, B against A, see `compare_study`."""

    study: str
    title: str
    sentences: list[str]
    notes: list[str]
    rows: pd.DataFrame
    drawings: list[Drawing]
    table: Table
    environments: list[tuple[str, str, str]]  # field, value in A, value in B, where they differ


def compare(a: Records, b: Records, preset: str) -> list[Comparison]:
    """Every study that both folders hold; DesignError if there is none."""
    common = sorted(set(a.studies()) & set(b.studies()))
    if not common:
        held = [f"{records.root} holds {listing(records.studies()) or 'no study'}" for records in (a, b)]
        raise DesignError(f"no study has runs in both folders: {'; '.join(held)}")
    return [compare_study(gather(a, name, preset), gather(b, name, preset)) for name in common]


def write(comparisons: Sequence[Comparison], a: Records, b: Records, out: Path, command: str) -> list[Path]:
    """Write index.html, figures/ and tables/ to `out`; the page comes first."""
    files = []
    for folder in (out / "figures", out / "tables"):
        folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for comparison in comparisons:
        files += comparison.table.save(out / "tables")
        drawings = []
        for drawing in comparison.drawings:
            files += drawing.save(out / "figures")
            drawings.append((drawing, files[-1].read_text()))
        drawn.append((comparison, drawings))
    index = out / "index.html"
    index.write_text(comparison_page(drawn, str(a.root), str(b.root), RULES, command))
    return [index, *files]


def compare_study(a: Evidence, b: Evidence) -> Comparison:
    """B against A, paired by condition and seed.

    `rows` has the columns condition, response, measure, a, b, those of `Difference`, margin, p_holm, p_equivalence
    (both Holm's over the conditions of one response), verdict and more_seeds. The condition "all" averages over the
    conditions within each seed, for seeds that have them all.
    """
    known = {response["name"]: response for response in [*a.declaration["responses"], *b.declaration["responses"]]}
    pairs = _pairs(a, b)
    rows = [_response_rows(pairs, response, b) for response in known.values() if f"{response['name']}_a" in pairs]
    frame = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    notes = [f"{side}: {note}" for side, evidence in (("A", a), ("B", b)) for note in evidence.notes]
    versions = [evidence.declaration["version"] for evidence in (a, b)]
    if versions[0] != versions[1]:
        notes.insert(0, f"A holds version {versions[0]} of the study, B version {versions[1]}.")
    unpaired = int(pairs["is_unpaired"].sum()) if len(pairs) else 0
    if unpaired:
        notes.append(f"{count(unpaired, 'pair')} saw different data by the hashes in their records, and were left out.")
    return Comparison(
        b.study,
        b.declaration["title"],
        _sentences(frame, pairs, b),
        notes,
        frame,
        _draw(frame, b) if len(frame) else [],
        _table(frame, known, b),
        _environments(a, b),
    )


def _pairs(a: Evidence, b: Evidence) -> pd.DataFrame:
    """A row per condition and seed that both finished; values end with `_a` and `_b`, `condition` says what is changed.

    A factor that only one side knows is at its baseline on the other.
    """
    if a.done.empty or b.done.empty:
        return pd.DataFrame()
    factors = {f["name"]: f["levels"][0]["name"] for f in [*a.declaration["factors"], *b.declaration["factors"]]}
    sides = []
    for evidence in (a, b):
        levels = {n: evidence.runs[n].astype(str) if n in evidence.runs else first for n, first in factors.items()}
        runs = evidence.runs.assign(**levels)
        sides.append(runs[runs["status"] != "failed"])
    pairs = sides[0].merge(sides[1], on=[*factors, "seed"], suffixes=("_a", "_b"))
    declared = [
        f"{factor['name']}={level['name']}"
        for evidence in (b, a)
        for factor in evidence.declaration["factors"]
        for level in factor["levels"]
    ]
    place = {text: declared.index(text) for text in declared}
    changed = [[f"{n}={row[n]}" for n, first in factors.items() if row[n] != first] for _, row in pairs.iterrows()]
    pairs["condition"] = [" ".join(words) or "baseline" for words in changed]
    order = [(len(words), *(place.get(word, len(place)) for word in words)) for words in changed]
    pairs = pairs.iloc[sorted(range(len(pairs)), key=order.__getitem__)].reset_index(drop=True)
    hashes = [pairs.get(f"pairing_split_{side}", pd.Series(np.nan, index=pairs.index)) for side in ("a", "b")]
    pairs["is_unpaired"] = hashes[0].notna() & hashes[1].notna() & (hashes[0] != hashes[1])
    return pairs


def _response_rows(pairs: pd.DataFrame, response: dict[str, Any], evidence: Evidence) -> pd.DataFrame:
    name, measure = response["name"], response.get("measure", "difference")
    if response["kind"] == "complexity":
        measure = "ratio"
    margin = _margin(evidence) if name == evidence.primary["name"] else TIME_MARGIN if measure == "ratio" else math.nan
    compared = {"difference": paired_difference, "ratio": paired_ratio, "median": paired_median}[measure]
    usable = pairs[~pairs["is_unpaired"]]
    rows, differences = [], []
    for condition, mine in usable.groupby("condition", sort=False):
        x, y = (mine.set_index("seed")[f"{name}_{side}"].astype(float) for side in ("a", "b"))
        found = compared(y, x)
        if found.n:
            center = "median" if measure == "median" else "mean"
            values = {"a": float(getattr(x, center)()), "b": float(getattr(y, center)())}
            same = bool(x.eq(y).all())
            rows.append({"condition": condition, "response": name, "measure": measure} | values | {"same": same})
            differences.append(found)
    if len(rows) > 1 and measure != "median":
        every = _over_conditions(usable, name, measure)
        values = {side: float(np.mean([row[side] for row in rows])) for side in ("a", "b")}
        rows.append(
            {"condition": "all", "response": name, "measure": measure}
            | values
            | {"same": all(row["same"] for row in rows)}
        )
        differences.append(every)
    return _judged(pd.DataFrame(rows), differences, response, margin)


def _over_conditions(pairs: pd.DataFrame, name: str, measure: str) -> Difference:
    x, y = (
        pairs.pivot_table(index="seed", columns="condition", values=f"{name}_{s}", aggfunc="first") for s in ("a", "b")
    )
    change = x.rdiv(y).apply(np.log) if measure == "ratio" else y.sub(x)
    change = change.replace([np.inf, -np.inf], np.nan)
    found = difference_of(change.dropna().mean(axis=1))
    if measure != "ratio":
        return found
    mean, low, high = (math.expm1(v) for v in (found.mean, found.low, found.high))
    return replace(found, mean=mean, low=low, high=high)


def _judged(
    frame: pd.DataFrame, differences: list[Difference], response: dict[str, Any], margin: float
) -> pd.DataFrame:
    if frame.empty:
        return frame
    logs = margin if frame["measure"].iloc[0] != "ratio" else math.log1p(margin)
    centred = [replace(d, mean=math.log1p(d.mean)) if m == "ratio" else d
               for d, m in zip(differences, frame["measure"], strict=True)]  # fmt: skip
    frame = pd.concat([frame, pd.DataFrame([vars(d) for d in differences])], axis=1).assign(margin=margin)
    frame["p_holm"] = holm(frame["p"].to_numpy())
    frame["p_equivalence"] = holm([equivalence_p(d, logs) for d in centred])
    frame["verdict"] = [_verdict(row, response) for _, row in frame.iterrows()]
    needed = [seeds_to_decide(d.sd, logs, ALPHA / len(frame)) if math.isfinite(logs) else None for d in differences]
    frame["more_seeds"] = [
        max(k - d.n, 0) if word == "undecided" and k is not None else math.nan
        for k, d, word in zip(needed, differences, frame["verdict"], strict=True)
    ]
    return frame


def _verdict(row: pd.Series, response: dict[str, Any]) -> str:
    if row["same"]:
        return "identical"
    if row["p_equivalence"] <= ALPHA:
        return "equivalent"
    if row["p_holm"] <= ALPHA or row["sd"] == 0:
        return "better" if (row["mean"] > 0) == (response["better"] == "higher") else "worse"
    return "undecided"


def _margin(evidence: Evidence) -> float:
    """The smallest difference that any hypothesis of the study says would matter."""
    levels = [level for factor in evidence.declaration["factors"] for level in factor["levels"]]
    return min((level["hypothesis"]["margin"] for level in levels if level["hypothesis"]), default=math.nan)


def _sentences(frame: pd.DataFrame, pairs: pd.DataFrame, evidence: Evidence) -> list[str]:
    if frame.empty:
        return ["No condition and seed was finished in both folders, so there is nothing to compare."]
    runs = f"{count(len(pairs), 'pair')} of runs ({count(pairs['condition'].nunique(), 'condition')})"
    sentences = []
    for name in dict.fromkeys([evidence.primary["name"], *frame.loc[frame["measure"] == "ratio", "response"]]):
        mine = frame[(frame["response"] == name) & (frame["condition"] != "all")]
        if len(mine):
            response = next(r for r in evidence.declaration["responses"] if r["name"] == name)
            words = mine["verdict"].value_counts()
            counts = listing([f"{word} in {words[word]}" for word in WORDS if word in words])
            whole = frame[(frame["response"] == name) & (frame["condition"] == "all")]
            overall = f"; over all conditions {_change(whole.iloc[0], response)}" if len(whole) else ""
            sentences.append(f"In {in_sentence(response['label'])}, B is {counts} of {len(mine)} conditions{overall}.")
    return [f"B is compared with A on {runs}.", *sentences]


def _change(row: pd.Series, response: dict[str, Any]) -> str:
    texts = change_texts(row, response)
    interval = f" (95 % interval {texts['95 % interval']}, n = {int(row['n'])})" if texts["95 % interval"] else ""
    return f"the change is {texts['Change']}{texts['unit']}{interval}"


def _draw(frame: pd.DataFrame, evidence: Evidence) -> list[Drawing]:
    primary, drawings = evidence.primary, []
    mine = frame[frame["response"] == primary["name"]]
    if len(mine):
        rows = mine.assign(factor="condition", level=mine["condition"])
        declaration = {"responses": [primary], "factors": [{"name": "condition", "label": "B minus A, by condition"}]}
        drawings.append(
            Drawing(
                f"{evidence.study}_comparison",
                f"B minus A in {in_sentence(primary['label'])}",
                "Difference of B to A on the same conditions and seeds, with its 95 % t interval. Grey bands span the "
                "smallest margin that the study states.",
                "; ".join(f"{row['condition']} {_change(row, primary)} {row['verdict']}" for _, row in mine.iterrows()),
                partial(forest, rows, declaration),
                "",
            )
        )
    for response in evidence.declaration["responses"]:
        times = frame[(frame["response"] == response["name"]) & (frame["sd"] > 0)]
        if response["kind"] == "complexity" and len(times):
            table = times.assign(label=times["condition"], ratio=1 + times["mean"])
            table[["low", "high"]] += 1
            label = in_sentence(response["label"])
            drawings.append(
                Drawing(
                    f"{evidence.study}_{response['name']}_ratio",
                    f"B over A in {label}",
                    f"Geometric mean of the ratio of {label} by condition, with its 95 % interval over seeds.",
                    "; ".join(f"{row['condition']} {_change(row, response)}" for _, row in times.iterrows()),
                    partial(timing_ratios, table, f"{heading(response['label'])} of B over A (left of 1, B is lower)"),
                    "",
                )
            )
    return drawings


def _table(frame: pd.DataFrame, responses: dict[str, dict[str, Any]], evidence: Evidence) -> Table:
    shown = []
    for _, row in frame.iterrows():
        response = responses[row["response"]]
        texts = change_texts(row, response)
        unit, by = texts.pop("unit").strip(), scale(response)
        more = "" if math.isnan(row["more_seeds"]) else f" (add {int(row['more_seeds'])} seeds)"
        change = texts["Change"] + (" %" if unit == "%" else "")
        shown.append(
            {"Condition": row["condition"], "Response": with_unit(response)}
            | {
                "A": _value(row["a"] * by),
                "B": _value(row["b"] * by),
                "Change": change,
                "Verdict": row["verdict"] + more,
            }
            | {"95 % interval": texts["95 % interval"], "n": str(int(row["n"]))}
        )
    note = "B against A, paired by condition and seed; complexity as the change of a ratio in per cent."
    return Table(f"{evidence.study}_comparison", "Every condition", note, frame, pd.DataFrame(shown))


def _value(x: float) -> str:
    return "never" if math.isinf(x) else number(x) if math.isfinite(x) else ""


def _environments(a: Evidence, b: Evidence) -> list[tuple[str, str, str]]:
    texts = [{k: "; ".join(v) for k, v in evidence.environment.items() if k != "date"} for evidence in (a, b)]
    fields = dict.fromkeys([*texts[0], *texts[1]])
    found = [(name, texts[0].get(name, "not recorded"), texts[1].get(name, "not recorded")) for name in fields]
    return [row for row in found if row[1] != row[2]]
