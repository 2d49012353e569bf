"""The clauses of a report's sentences: what changed by how much, how surely, and the fine print of the tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ablations.report.evidence import Evidence
from ablations.report.numbers import (
    amount,
    count,
    decimals,
    in_sentence,
    number,
    p_value,
    scale,
    unit_of_difference,
    unit_of_value,
)
from ablations.statistics import ALPHA, binomial_error, bootstrap_interval, proportion_interval
from ablations.statistics.paired import FEWEST_FOR_BOOTSTRAP, smallest_exact_p


def clause(row: pd.Series, response: Mapping[str, Any], evidence: Evidence) -> str:
    """What comes after "The effect on ... was" for one response."""
    label = in_sentence(response["label"])
    if row["measure"] == "median":
        return _median_clause(row, response)
    values = values_of(row["value"], row["baseline"], row, response)
    error = test_set_error(row["value"], response, evidence)
    if math.isfinite(error):
        values += f", each with a standard error of {number(error, decimals(error))} by the test set alone"
    if row["measure"] == "exact":
        if row["mean"] == 0:
            return f"no change in {label} ({_value(row['value'], row, response)})"
        return f"{shift(row, response)} in {label} ({values})"
    if row["sd"] == 0 and row["mean"] == 0:
        return f"no change in {label} in any of {row['n']} seeds"
    if not math.isfinite(row["low"]):
        seeds = "from one seed, too few for an interval" if row["n"] == 1 else f"the same in all {row['n']} seeds"
        return f"{shift(row, response)} in {label}, {seeds} ({values})"
    numbers = f"{shift(row, response)} ({certainty(row, response)}; {values})"
    detected = (row["p_holm"] if row["expects"] else row["q"]) <= ALPHA
    small = row["p_equivalence"] <= ALPHA
    if not detected:
        return f"{'none that matters' if small else 'no difference we could detect'} in {label}: {numbers}"
    if row["measure"] == "ratio":
        return f"{shift(row, response)} in {label} ({certainty(row, response)}; {values})"
    higher = row["mean"] > 0
    better = "better" if higher == (response["better"] == "higher") else "worse"
    size = ", though by less than would matter" if small else ""
    return f"a {'rise' if higher else 'fall'} in {label}, for the {better}{size}: {numbers}"


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
    if smallest_exact_p(int(row["n"])) > ALPHA:
        return f"not to be tested with {count(int(row['n']), 'seed')} in {label} {numbers}"
    if not detected:
        return f"no difference we could detect in {label} {numbers}"
    later = row["mean"] > 0 or row["value"] > row["baseline"]
    return f"{'more' if later else 'fewer'} {label}, for the {'worse' if later else 'better'} {numbers}"


def losses(row: pd.Series, by_name: Mapping[str, pd.Series], responses: list[dict[str, Any]]) -> list[str]:
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


def fine_print(row: pd.Series, pairs: pd.DataFrame, evidence: Evidence) -> list[str]:
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
    if smallest_exact_p(n) > ALPHA:
        sentences.append(
            f"The exact sign-flip test cannot reach {ALPHA} with {n} seeds, whose smallest p value is "
            f"{smallest_exact_p(n):.2g}: that differences are normal, as the t test assumes, carries the verdict."
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
    error = test_set_error(row["value"], evidence.primary, evidence)
    if not math.isfinite(error):
        return []
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


def lacking(row: pd.Series, margin: str, family: int) -> str:
    """Why the data cannot tell, and how many seeds would."""
    if row["p_holm"] <= ALPHA:
        reason = f"There is a difference; whether it is smaller or larger than {margin} is open."
        if math.isnan(row["more_seeds"]):
            return f"{reason} The estimate lies so near to that margin that 1,000 seeds would not tell."
        return (
            f"{reason} About {count(max(int(row['more_seeds']), 1), 'more seed')} would tell, if it is as large as it "
            "seems."
        )
    alone = f"Alone it would pass ({p_value(row['p'])}), but it is one of {family} hypotheses. "
    reason = alone if row["p"] <= ALPHA else ""
    if math.isnan(row["more_seeds"]):
        return f"{reason}Seeds differ so much that 1,000 of them would not tell a difference of {margin} from none."
    if row["more_seeds"] == 0:
        return f"{reason}The estimate lies between nothing and {margin}, where more seeds help only slowly."
    return f"{reason}About {count(int(row['more_seeds']), 'more seed')} would tell a difference of {margin} from none."


def shift(row: pd.Series, response: Mapping[str, Any]) -> str:
    """The mean change with its sign and unit."""
    if row.get("measure", "difference") == "difference":
        return (
            f"{number(row['mean'] * scale(response), _digits(row, response), sign=True)}{unit_of_difference(response)}"
        )
    return f"{_percent(row['mean'], row)} %"


def certainty(row: pd.Series, response: Mapping[str, Any]) -> str:
    """Interval and number of seeds; the corrected p value of a hypothesis, and of an interval that it contradicts."""
    if not math.isfinite(row["low"]):
        return f"no interval, n = {int(row['n'])}"
    if row.get("measure", "difference") == "difference":
        low, high = (number(row[x] * scale(response), _digits(row, response), sign=True) for x in ("low", "high"))
        interval = f"{low} to {high}"
    else:
        interval = f"{_percent(row['low'], row)} to {_percent(row['high'], row)} %"
    p = ""
    if math.isfinite(row.get("p_holm", math.nan)):
        p = f", {p_value(row['p_holm'])} after Holm's correction"
    elif (row["low"] > 0 or row["high"] < 0) and row.get("q", math.nan) > ALPHA:
        p = f", corrected {p_value(row['q'])}"
    return f"95 % interval {interval}, n = {int(row['n'])}{p}"


def test_set_error(value: float, response: Mapping[str, Any], evidence: Evidence) -> float:
    """Standard error, in per cent, that the test set alone leaves a share of right answers; NaN for other responses."""
    is_share = response["kind"] == "accuracy" and response["unit"] == "%" and 0 <= value <= 1
    return 100 * binomial_error(value, evidence.test_examples) if is_share else math.nan


def values_of(level: float, baseline: float, row: pd.Series, response: Mapping[str, Any]) -> str:
    return f"{_value(level, row, response, unit=False)} against {_value(baseline, row, response)}"


def _value(x: float, row: pd.Series, response: Mapping[str, Any], unit: bool = True) -> str:
    """A level's mean, with as many digits as its difference; times below 0.1 s in milliseconds."""
    if response["kind"] == "complexity":
        return amount(x, response["unit"])
    digits = _digits(row, response) if row.get("measure", "difference") == "difference" else None
    return f"{number(x * scale(response), digits)}{unit_of_value(response) if unit else ''}"


def _percent(ratio: float, row: pd.Series) -> str:
    half = (row["high"] - row["low"]) / 2 * 100
    digits = decimals(half) if half > 0 else 0 if abs(ratio) >= 0.1 else 1
    return number(ratio * 100, min(digits, 2), sign=True)


def _digits(row: pd.Series, response: Mapping[str, Any]) -> int | None:
    half = (row["high"] - row["low"]) / 2 * scale(response)
    return decimals(half) if half > 0 else None


def _time(x: float, response: Mapping[str, Any], unit: bool = True) -> str:
    if math.isinf(x):
        return "never"
    return f"{number(x, _time_digits(x))}{unit_of_value(response) if unit else ''}"


def _time_digits(x: float) -> int:
    return 0 if x == int(x) else 1
