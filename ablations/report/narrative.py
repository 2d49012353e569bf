"""The report in words: "Let's try ... because we might assume that ...", what it did, and what we may conclude."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ablations.report.clauses import certainty, clause, fine_print, lacking, losses, shift, values_of
from ablations.report.evidence import Evidence
from ablations.report.numbers import (
    count,
    in_sentence,
    listing,
    p_value,
    scale,
    unit_of_difference,
)
from ablations.statistics import (
    ALPHA,
    baseline_runs,
    one_factor_runs,
    paired_difference,
    seed_pairs,
)

VERDICTS = ("supported", "contradicted", "equivalent", "undecided")
MOST_INTERACTIONS = 5  # told in words; the table has them all
KINDS = {"accuracy": "accuracy", "convergence": "learning convergence", "complexity": "model complexity"}


@dataclass(frozen=True)
class Card:
    """One hypothesis: what was tried and why, the three effects, and the verdict with its reason."""

    level: str
    trying: str
    effects: list[str]
    verdict: str  # "" where the level stated no hypothesis
    conclusion: str
    details: list[str]  # how large, how sure, by which tests: the fine print
    row: pd.Series  # of `statistics.effects`, in the primary response
    pairs: pd.DataFrame  # the runs behind it, see `statistics.seed_pairs`


@dataclass(frozen=True)
class Chapter:
    """One factor: its label, its baseline level, its cards, and what is said of levels without."""

    label: str
    baseline: str
    cards: list[Card]
    absent: str  # says which levels have no run, or no finished one


@dataclass(frozen=True)
class Story:
    """One study: a summary in three sentences, notes on what is missing, references, chapters, and its design."""

    summary: list[str]
    notes: list[str]
    references: list[str]
    chapters: list[Chapter]
    design: list[str]  # what this design can see, and which interactions it found


def tell(evidence: Evidence) -> Story:
    """The story of one study, from its evidence alone."""
    chapters = [_chapter(factor, evidence) for factor in evidence.declaration["factors"]]
    return Story(_summary(evidence), evidence.notes, _references(evidence), chapters, _design(evidence))


def _summary(evidence: Evidence) -> list[str]:
    question = f"We asked: {in_sentence(evidence.declaration['question'])}"
    done, rows = evidence.done, _primary_rows(evidence)
    compared = rows[rows["n"] > 0] if len(rows) else rows
    if done.empty:
        return [question, "No finished run of this preset is on record, so nothing is known yet."]
    factors = [f["name"] for f in evidence.declaration["factors"] if f["name"] in done]
    conditions = count(len(done[factors].drop_duplicates()), "condition")
    data = f"{count(len(done), 'finished run')} ({conditions}, {count(done['seed'].nunique(), 'seed')})"
    if compared.empty:
        return [question, f"The {data} hold no pair of level and baseline, so there is nothing to compare yet."]
    words = rows.loc[rows["expects"] != "", "verdict"].value_counts()
    verdicts = [f"{words[word]} {word}" for word in VERDICTS if word in words]
    known = f"{count(int(words.sum()), 'hypothesis', 'hypotheses')} tested on {data}: {listing(verdicts)}."
    return [question, known, _largest(compared, evidence)]


def _largest(rows: pd.DataFrame, evidence: Evidence) -> str:
    """The sentence on the largest gain and the largest loss, among detected differences."""
    response, labels = evidence.primary, {f["name"]: f["label"] for f in evidence.declaration["factors"]}
    if rows["n"].max() < 2:
        return "One seed cannot show which of the differences are more than chance."
    detected = [row for _, row in rows.iterrows() if row["p_holm"] <= ALPHA]
    if not detected:
        return f"No level made a difference that we could detect in {in_sentence(response['label'])}."
    up = 1 if response["better"] == "higher" else -1
    parts = []
    for word, sign in (("gain", up), ("loss", -up)):
        row = max(detected, key=lambda row, sign=sign: sign * row["mean"])  # type: ignore[misc]
        if sign * row["mean"] > 0:
            choice = f"{in_sentence(labels[row['factor']])} {row['level']}"
            parts.append(f"the largest {word} came with {choice} ({shift(row, response)})")
    return f"In {in_sentence(response['label'])}, {listing(parts)}."


def _primary_rows(evidence: Evidence) -> pd.DataFrame:
    rows = evidence.effects
    return rows[rows["response"] == evidence.primary["name"]] if len(rows) else rows


def _references(evidence: Evidence) -> list[str]:
    """Whether the baseline network beats the forecasts made without a network."""
    response, sentences = evidence.primary, []
    if not evidence.references or response["name"] not in evidence.done:
        return []
    runs = baseline_runs(evidence.done, evidence.declaration).set_index("seed")
    for column, name in evidence.references.items():
        network, reference = runs[response["name"]].astype(float), runs[column].astype(float)
        difference = paired_difference(network, reference)
        if difference.n == 0:
            continue
        row = pd.Series(vars(difference))
        beats = (difference.mean < 0) == (response["better"] == "lower")
        if difference.n == 1:
            verdict = f"One seed cannot tell whether the baseline network beats {name}"
        elif not difference.p <= ALPHA:
            verdict = f"The baseline network and {name} cannot be told apart"
        else:
            verdict = f"The baseline network {'beats' if beats else 'does not beat'} {name}"
            verdict += "" if beats else ", which is better"
        sentences.append(
            f"{verdict}: its {in_sentence(response['label'])} differs by {shift(row, response)} "
            f"({certainty(row, response)}; {values_of(network.mean(), reference.mean(), row, response)})."
        )
    return sentences


def _chapter(factor: Mapping[str, Any], evidence: Evidence) -> Chapter:
    cards: list[Card] = []
    unfinished: list[str] = []
    absent: list[str] = []
    names = [f["name"] for f in evidence.declaration["factors"] if f["name"] in evidence.runs]
    tried = set(one_factor_runs(evidence.runs[names], evidence.declaration, factor["name"])["level"])
    for level in factor["levels"][1:]:
        rows = evidence.effects
        rows = rows[(rows["factor"] == factor["name"]) & (rows["level"] == level["name"])] if len(rows) else rows
        if len(rows):
            cards.append(_card(factor["name"], level, rows, evidence))
        else:
            (unfinished if level["name"] in tried else absent).append(level["name"])
    remarks = [
        f"{words}: {listing(names)}."
        for words, names in (("No run finished", unfinished), ("Not run under this preset", absent))
        if names
    ]
    return Chapter(factor["label"], factor["levels"][0]["name"], cards, " ".join(remarks))


def _card(factor: str, level: Mapping[str, Any], rows: pd.DataFrame, evidence: Evidence) -> Card:
    hypothesis = level["hypothesis"]
    responses = [r for r in evidence.declaration["responses"] if r.get("told", True)]
    trying = f"Let's try {level['name']}."
    if hypothesis:
        because = hypothesis["because"].rstrip(".")
        trying = f"Let's try {hypothesis['trying']}, because we might assume that {because}."
    by_name = {row["response"]: row for _, row in rows.iterrows()}
    sentences, unmeasured = [], []
    for kind, words in KINDS.items():
        mine = [response for response in responses if response["kind"] == kind]
        measured = [r for r in mine if r["name"] in by_name and by_name[r["name"]]["n"]]
        if measured:
            clauses = [clause(by_name[r["name"]], r, evidence) for r in measured]
            sentences.append(f"The effect on {words} was {listing(clauses, '; ')}.")
        unmeasured += [in_sentence(r["label"]) for r in mine if r not in measured]
    if unmeasured:
        sentences.append(f"Without a seed that has it on both sides, so not compared: {listing(unmeasured)}.")
    row = by_name.get(responses[0]["name"], rows.iloc[0])
    sentences += losses(row, by_name, responses)
    conclusion = _conclusion(row, evidence) if hypothesis and row["response"] == responses[0]["name"] else ""
    for response in responses[1:]:
        if (other := by_name.get(response["name"])) is not None and other["expects"]:
            found = _conclusion(other, evidence, response)
            verdict = f" {other['verdict'].capitalize()}." if other["verdict"] else ""
            conclusion += f" Of {in_sentence(response['label'])}: {found[0].lower()}{found[1:]}{verdict}"
    pairs = seed_pairs(evidence.runs, evidence.declaration, factor, level["name"], responses[0])
    details = fine_print(row, pairs, evidence) if conclusion and row["n"] > 1 else []
    return Card(level["name"], trying, sentences, row.get("verdict", "") or "", conclusion, details, row, pairs)


def _conclusion(row: pd.Series, evidence: Evidence, of: Mapping[str, Any] | None = None) -> str:
    """What follows for the primary response, or for another that the hypothesis speaks of."""
    response, family = of or evidence.primary, int((evidence.effects["expects"] != "").sum())
    size, unit = row["margin"] * scale(response), unit_of_difference(response)
    margin = f"{size:g}{unit.removesuffix('s') if size == 1 and response['unit'] == '%' else unit}"
    margin = f"{100 * row['margin']:g} %" if row["measure"] == "ratio" else margin
    if row["n"] == 0:
        return (
            "No seed has a finished run both of this level and of the baseline, so nothing can be concluded of "
            f"{in_sentence(response['label'])}."
        )
    if row["n"] == 1:
        return "One seed tells nothing of the spread between seeds: no interval, no test, no verdict. Run more seeds."
    if not row["sd"] > 0:
        return "All seeds differ by the same amount, so there is no spread to judge it by."
    expected = {"better": "an improvement", "worse": "a loss", "equal": "no difference that matters"}[row["expects"]]
    found = {
        "supported": f"We expected {expected} and found it.",
        "contradicted": f"We expected {expected} and found the opposite." if row["expects"] != "equal"
        else f"We expected {expected} and found one larger than {margin}.",
        "equivalent": f"We expected {expected}; the difference is smaller than the {margin} that would matter.",
        "undecided": f"We expected {expected}; the data cannot tell. {lacking(row, margin, family)}",
    }[row["verdict"]]  # fmt: skip
    return found


def _design(evidence: Evidence) -> list[str]:
    """What the design can see; where factors were crossed, the interactions that were detected."""
    if not len(evidence.effects):
        return []
    if not evidence.crossed:
        limit = (
            "One factor was changed at a time. Such a design cannot see interactions: what two changes do together may "
            "differ from the sum of what each does alone."
        )
        factors = evidence.effects["factor"].nunique()
        if factors < 2:
            return [f"{limit} To see them, run two factors with their levels and the option --design factorial."]
        strongest = min(factors, 3)
        pairs = ["ablate", "run", evidence.study, "--preset", evidence.preset, "--design", "pairs"]
        pairs += ["--strongest", str(strongest)] if strongest < 3 else []
        return [
            f"{limit} The command {shlex.join(pairs)} adds, to the same runs folder, the runs that show it, of the "
            f"{('two', 'three')[strongest - 2]} factors that move most; or name two factors with their levels and the "
            "option --design factorial."
        ]
    response, found = evidence.primary, evidence.interactions
    labels = {f["name"]: in_sentence(f["label"]) for f in evidence.declaration["factors"]}
    tested = f"{count(len(found), 'interaction')} of two levels could be tested"
    detected = found[found["q"] <= ALPHA].sort_values("mean", key=abs, ascending=False)
    if detected.empty:
        return [f"{tested} in {in_sentence(response['label'])}; none was detected."]
    sentences = [f"{tested} in {in_sentence(response['label'])}; {len(detected)} detected, the largest first."]
    for _, row in detected.head(MOST_INTERACTIONS).iterrows():
        pair = f"{labels[row['factor']]} {row['level']} and {labels[row['other_factor']]} {row['other_level']}"
        sentences.append(
            f"Together, {pair} change it by {shift(row, response)} beyond the sum of what each does alone "
            f"({certainty(row, response)}, {p_value(row['q'])} after Benjamini and Hochberg's correction)."
        )
    return sentences
