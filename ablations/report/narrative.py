"""The report in words: "Let's try ... because we might assume that ...", what it did, and what we may conclude."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ablations.report.evidence import Evidence
from ablations.report.numbers import (
    amount,
    count,
    decimals,
    in_sentence,
    listing,
    number,
    p_value,
    scale,
    unit_of_difference,
    unit_of_value,
)
from ablations.statistics import (
    ALPHA,
    baseline_runs,
    binomial_error,
    bootstrap_interval,
    one_factor_runs,
    paired_difference,
    proportion_interval,
    seed_pairs,
)
from ablations.statistics.paired import FEWEST_FOR_BOOTSTRAP

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
            parts.append(f"the largest {word} came with {choice} ({_shift(row, response)})")
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
        if not difference.p <= ALPHA:
            verdict = f"The baseline network and {name} cannot be told apart"
        else:
            verdict = f"The baseline network {'beats' if beats else 'does not beat'} {name}"
            verdict += "" if beats else ", which is better"
        sentences.append(
            f"{verdict}: its {in_sentence(response['label'])} differs by {_shift(row, response)} "
            f"({_certainty(row, response)}; {_values(network.mean(), reference.mean(), row, response)})."
        )
    return sentences


def _chapter(factor: Mapping[str, Any], evidence: Evidence) -> Chapter:
    cards: list[Card] = []
    unfinished: list[str] = []
    absent: list[str] = []
    runs = one_factor_runs(evidence.runs, evidence.declaration) if len(evidence.runs) else evidence.runs
    tried = set(runs.loc[runs["factor"] == factor["name"], "level"]) if len(runs) else set()
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
            clauses = [_clause(by_name[r["name"]], r, evidence) for r in measured]
            sentences.append(f"The effect on {words} was {listing(clauses, '; ')}.")
        unmeasured += [in_sentence(r["label"]) for r in mine if r not in measured]
    if unmeasured:
        sentences.append(f"Without a seed that has it on both sides, so not compared: {listing(unmeasured)}.")
    row = by_name.get(responses[0]["name"], rows.iloc[0])
    sentences += _losses(row, by_name, responses)
    conclusion = _conclusion(row, evidence) if hypothesis and row["response"] == responses[0]["name"] else ""
    pairs = seed_pairs(evidence.runs, evidence.declaration, factor, level["name"], responses[0])
    details = _details(row, pairs, evidence) if conclusion and row["n"] > 1 else []
    return Card(level["name"], trying, sentences, row.get("verdict", "") or "", conclusion, details, row, pairs)


def _losses(row: pd.Series, by_name: Mapping[str, pd.Series], responses: list[dict[str, Any]]) -> list[str]:
    sentences = []
    if row["diverged"] or row["baseline_diverged"]:
        low, high = (number(100 * x, 0) for x in proportion_interval(row["diverged"], row["tried"]))
        sentences.append(
            f"{row['diverged']} of {count(row['tried'], 'run')} diverged (95 % interval of the rate {low} to {high} %) "
            f"and {row['baseline_diverged']} of {row['baseline_tried']} of the baseline: counted here, not averaged in."
        )
    if row["failed"]:
        sentences.append(f"{count(row['failed'], 'run')} of this level failed: counted here, not averaged in.")
    for response in responses:
        mine = by_name.get(response["name"])
        if (
            mine is not None
            and mine["measure"] != "median"
            and mine["n"]
            and (mine["missed"] or mine["baseline_missed"])
        ):
            ours, theirs = (count(mine[side], "run") for side in ("missed", "baseline_missed"))
            sentences.append(
                f"Without a finite value of {in_sentence(response['label'])}: {ours} of this level and {theirs} of the "
                "baseline; its difference covers the other pairs."
            )
    return sentences


def _clause(row: pd.Series, response: Mapping[str, Any], evidence: Evidence) -> str:
    """What comes after "The effect on ... was" for one response."""
    label = in_sentence(response["label"])
    values = _values(row["value"], row["baseline"], row, response)
    if row["measure"] == "median":
        return _median_clause(row, response)
    if row["measure"] == "exact":
        if row["mean"] == 0:
            return f"no change in {label} ({_value(row['value'], row, response)})"
        return f"{_shift(row, response)} in {label} ({values})"
    if row["sd"] == 0 and row["mean"] == 0:
        return f"no change in {label} in any of {row['n']} seeds"
    if not math.isfinite(row["low"]):
        seeds = "from one seed, too few for an interval" if row["n"] == 1 else f"the same in all {row['n']} seeds"
        return f"{_shift(row, response)} in {label}, {seeds} ({values})"
    numbers = f"{_shift(row, response)} ({_certainty(row, response)}; {values})"
    is_primary = response is evidence.primary
    detected = (row["p_holm"] if is_primary and row["expects"] else row["q"]) <= ALPHA
    small = is_primary and row["p_equivalence"] <= ALPHA
    if not detected:
        return f"{'none that matters' if small else 'no difference we could detect'} in {label}: {numbers}"
    if row["measure"] == "ratio":
        return f"{_shift(row, response)} in {label} ({_certainty(row, response)}; {values})"
    higher = row["mean"] > 0
    better = "better" if higher == (response["better"] == "higher") else "worse"
    size = ", though by less than would matter" if small else ""
    return f"a {'rise' if higher else 'fall'} in {label}, for the {better}{size}: {numbers}"


def _conclusion(row: pd.Series, evidence: Evidence) -> str:
    response, family = evidence.primary, int((_primary_rows(evidence)["expects"] != "").sum())
    size = row["margin"] * scale(response)
    margin = f"{size:g}{unit_of_difference(response)}"
    margin = margin.removesuffix("s") if size == 1 and response["unit"] == "%" else margin
    if row["n"] == 0:
        return "No seed has a finished run both of this level and of the baseline, so nothing can be concluded."
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
        "undecided": f"We expected {expected}; the data cannot tell. {_lacking(row, margin, family)}",
    }[row["verdict"]]  # fmt: skip
    return found


def _lacking(row: pd.Series, margin: str, family: int) -> str:
    if row["p_holm"] > ALPHA >= row["p"]:
        reason = f"Alone it would pass ({p_value(row['p'])}), but it is one of {family} hypotheses. "
    elif row["p_holm"] <= ALPHA:
        reason = f"There is a difference; whether it is smaller or larger than {margin} is open. "
    else:
        reason = ""
    if math.isnan(row["more_seeds"]):
        return f"{reason}Seeds differ so much that 1,000 of them would not tell a difference of {margin} from none."
    if row["more_seeds"] == 0:
        return f"{reason}The estimate lies between nothing and {margin}, where more seeds help only slowly."
    return f"{reason}About {count(int(row['more_seeds']), 'more seed')} would tell a difference of {margin} from none."


def _details(row: pd.Series, pairs: pd.DataFrame, evidence: Evidence) -> list[str]:
    """The fine print of the primary response: effect size, improvement, what could be detected, and other tests."""
    response, n, sentences = evidence.primary, int(row["n"]), []
    wins = f"The level was better on {number(100 * row['improvement'], 0)} % of the seeds"
    bounds = (number(100 * row[f"improvement_{side}"], 0) for side in ("low", "high"))
    sentences.append(f"{wins} (95 % interval of the probability of improvement {' to '.join(bounds)} %, n = {n}).")
    if math.isfinite(row["effect_size"]):
        sentences.append(
            f"In standard deviations between seeds, the effect is {number(row['effect_size'], 2, sign=True)} "
            "(Hedges' g)."
        )
    if math.isfinite(row["detectable"]):
        smallest = number(row["detectable"] * scale(response), decimals(row["detectable"] * scale(response)))
        sentences.append(
            f"With these seeds and so many hypotheses, a true difference of {smallest}{unit_of_difference(response)} "
            "would be detected with 80 % power."
        )
    if 2.0 / 2.0**n > ALPHA:
        sentences.append(
            f"The exact sign-flip test cannot reach {ALPHA} with {n} seeds, whose smallest p value is "
            f"{2.0 / 2.0**n:.2g}: that differences are normal, as the t test assumes, carries the verdict."
        )
    else:
        sentences.append(
            f"The exact sign-flip test, which assumes less than the t test, gives {p_value(row['p_sign_flip'])}."
        )
    if n >= FEWEST_FOR_BOOTSTRAP:
        ends = (x * scale(response) for x in bootstrap_interval(pairs["level"], pairs["baseline"]))
        low, high = (number(x, _digits(row, response), sign=True) for x in ends)
        sentences.append(f"The bootstrap's interval (BCa) is {low} to {high}.")
    return [*sentences, *_test_set(row, evidence)]


def _test_set(row: pd.Series, evidence: Evidence) -> list[str]:
    """What the test set leaves open, and McNemar's test where both models answered the same examples."""
    if not evidence.test_examples or evidence.primary["unit"] != "%":
        return []
    error = 100 * binomial_error(row["value"], evidence.test_examples)
    sentences = [
        f"The {evidence.test_examples:,} test examples alone leave each accuracy a standard error of "
        f"{number(error, decimals(error))} percentage points, which more seeds do not shrink."
    ]
    answers = evidence.answers
    if len(answers):
        mine = answers[(answers["factor"] == row["factor"]) & (answers["level"] == row["level"])]
        if len(mine):
            ours, theirs = (number(mine[side].mean(), 1) for side in ("only_level", "only_baseline"))
            sentences.append(
                f"On the same examples {ours} were right with this level alone and {theirs} with the baseline alone, "
                f"on average; McNemar's exact test tells the two apart in {int((mine['p'] <= ALPHA).sum())} of "
                f"{count(len(mine), 'seed')}."
            )
    return sentences


def _median_clause(row: pd.Series, response: Mapping[str, Any]) -> str:
    """A time that may never come: medians, with the runs that missed it counted in."""
    label, detected = in_sentence(response["label"]), row["q"] <= ALPHA
    values = f"median {_time(row['value'], response, unit=False)} against {_time(row['baseline'], response)}"
    missed = [
        f"missed by {count(int(row[side]), 'run')} of {whose}"
        for side, whose in (("missed", "this level"), ("baseline_missed", "the baseline"))
        if row[side]
    ]
    bounded = math.isfinite(row["low"]) and math.isfinite(row["high"])
    ends = (number(row[side], _time_digits(row[side]), sign=True) for side in ("low", "high"))
    interval = f"95 % interval of the median difference {' to '.join(ends)}, " if bounded else ""
    numbers = f"({interval}n = {int(row['n'])}; {'; '.join([values, *missed])})"
    if not detected:
        return f"no difference we could detect in {label} {numbers}"
    later = row["mean"] > 0 or row["value"] > row["baseline"]
    return f"{'more' if later else 'fewer'} {label}, for the {'worse' if later else 'better'} {numbers}"


def _time(x: float, response: Mapping[str, Any], unit: bool = True) -> str:
    if math.isinf(x):
        return "never"
    return f"{number(x, _time_digits(x))}{unit_of_value(response) if unit else ''}"


def _time_digits(x: float) -> int:
    return 0 if x == int(x) else 1


def _design(evidence: Evidence) -> list[str]:
    """What the design can see; where factors were crossed, the interactions that were detected."""
    if not len(evidence.effects):
        return []
    if not evidence.crossed:
        return [
            "One factor was changed at a time. Such a design cannot see interactions: what two changes do together may "
            "differ from the sum of what each does alone."
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
            f"Together, {pair} change it by {_shift(row, response)} beyond the sum of what each does alone "
            f"({_certainty(row, response)}, {p_value(row['q'])} after Benjamini and Hochberg's correction)."
        )
    return sentences


def _shift(row: pd.Series, response: Mapping[str, Any]) -> str:
    """The mean change with its sign and unit."""
    if row.get("measure", "difference") == "difference":
        return (
            f"{number(row['mean'] * scale(response), _digits(row, response), sign=True)}{unit_of_difference(response)}"
        )
    return f"{_percent(row['mean'], row)} %"


def _certainty(row: pd.Series, response: Mapping[str, Any]) -> str:
    """Interval, number of seeds and, for a tested hypothesis, its corrected p value."""
    if row.get("measure", "difference") == "difference":
        low, high = (number(row[x] * scale(response), _digits(row, response), sign=True) for x in ("low", "high"))
        interval = f"{low} to {high}"
    else:
        interval = f"{_percent(row['low'], row)} to {_percent(row['high'], row)} %"
    corrected = math.isfinite(row.get("p_holm", math.nan))
    p = f", {p_value(row['p_holm'])} after Holm's correction" if corrected else ""
    return f"95 % interval {interval}, n = {int(row['n'])}{p}"


def _percent(ratio: float, row: pd.Series) -> str:
    half = (row["high"] - row["low"]) / 2 * 100
    digits = decimals(half) if half > 0 else 0 if abs(ratio) >= 0.1 else 1
    return number(ratio * 100, min(digits, 2), sign=True)


def _digits(row: pd.Series, response: Mapping[str, Any]) -> int | None:
    half = (row["high"] - row["low"]) / 2 * scale(response)
    return decimals(half) if half > 0 else None


def _value(x: float, row: pd.Series, response: Mapping[str, Any], unit: bool = True) -> str:
    """A level's mean, with as many digits as its difference; times below 0.1 s in milliseconds."""
    if response["kind"] == "complexity":
        return amount(x, response["unit"])
    digits = _digits(row, response) if row.get("measure", "difference") == "difference" else None
    return f"{number(x * scale(response), digits)}{unit_of_value(response) if unit else ''}"


def _values(level: float, baseline: float, row: pd.Series, response: Mapping[str, Any]) -> str:
    return f"{_value(level, row, response, unit=False)} against {_value(baseline, row, response)}"
