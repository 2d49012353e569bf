"""Claims of the report's words: every number can be recomputed from runs.csv, and every sentence says what it may."""

import copy
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import optimize, stats

from ablations.records import Records, Result
from ablations.report.evidence import gather
from ablations.report.narrative import tell
from ablations.report.numbers import MINUS, count, decimals, in_sentence, listing, number, p_value
from ablations.statistics import effects

NUMBER = rf"[+{MINUS}]?\d[\d,]*(?:\.\d+)?"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    records = Records(tmp_path_factory.mktemp("runs"))
    synthetic.write_study(records, synthetic.EPIDEMIC, seeds=6)
    synthetic.write_study(records, synthetic.VISION, seeds=5)
    return records


@pytest.fixture(scope="module", params=["epidemic", "vision"])
def story(request, records, tmp_path_factory):
    """A study's declaration, its runs as read back from CSV, and its story."""
    evidence = gather(records, request.param, "quick")
    path = tmp_path_factory.mktemp("csv") / "runs.csv"
    evidence.runs.to_csv(path, index=False)
    return (
        evidence.declaration,
        pd.read_csv(path, dtype=dict.fromkeys(("history", "depth", "dense"), str)),
        tell(evidence),
    )


def gather_of(declaration, folder):
    records = Records(folder)
    synthetic.write_study(records, declaration, seeds=6)
    return gather(records, declaration["name"], "quick")


def value(text: str) -> float:
    return float(text.replace(MINUS, "-").replace(",", ""))


def shown(text: str, exact: float) -> bool:
    """Whether the text is that number, rounded to the digits it shows."""
    places = len(text.partition(".")[2])
    return abs(value(text) - exact) <= 0.5000001 * 10.0**-places


def pairs(runs, declaration, factor, level, response):
    baseline = {f["name"]: f["levels"][0]["name"] for f in declaration["factors"]}

    def select(levels):
        mask = np.logical_and.reduce([runs[name] == chosen for name, chosen in levels.items()])
        return runs[mask].set_index("seed")[response].sort_index()

    return select(baseline | {factor: level}), select(baseline)


def median_interval(differences):
    """The widest pair of order statistics, of equal rank from both ends, that the binomial allows at 95 %."""
    x, rank = differences.sort_values().to_list(), 0
    while stats.binom.cdf(rank, len(x), 0.5) <= 0.025:
        rank += 1
    return (x[rank - 1], x[-rank]) if rank else ()


def detectable(n, alpha):
    """The standardised shift of a t test's mean at which its power is 80 %."""
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    return optimize.brentq(lambda shift: stats.nct.sf(critical, n - 1, shift) - 0.8, 0, 100)


def decides(n, size):
    """Whether n seeds detect a shift of that many standard deviations, and confirm its absence, with 80 % power."""
    alpha, shift = 0.05 / 7, size * math.sqrt(n)
    detected = stats.nct.sf(stats.t.ppf(1 - alpha / 2, n - 1), n - 1, shift)
    confirmed = 2 * stats.nct.sf(stats.t.ppf(1 - alpha, n - 1), n - 1, shift) - 1
    return min(detected, confirmed) >= 0.8


def answers(records, key):
    arrays = records.predictions("vision", key)
    return arrays["label"], arrays["predicted"]


def cards(declaration, story):
    for factor, chapter in zip(declaration["factors"], story.chapters, strict=True):
        for card in chapter.cards:
            yield factor["name"], card


def test_primary_numbers_can_be_recomputed_from_the_csv(story):
    declaration, runs, told = story
    primary = declaration["responses"][0]
    by = 100 if primary["unit"] == "%" else 1
    seen = [(factor, card.level) for factor, card in cards(declaration, told)]
    differences = {}
    for factor, level in seen:
        x, y = pairs(runs, declaration, factor, level, primary["name"])
        differences[factor, level] = (x, y, stats.ttest_rel(x, y))
    ordered = sorted(seen, key=lambda key: differences[key][2].pvalue)
    corrected, running = {}, 0.0
    for k, key in enumerate(ordered):
        running = max(running, min(1.0, differences[key][2].pvalue * (len(ordered) - k)))
        corrected[key] = running
    pattern = (
        rf"({NUMBER})[a-z ]* \(95 % interval ({NUMBER}) to ({NUMBER}), n = (\d+), p ([<=]) ({NUMBER}) after Holm's "
        rf"correction; ({NUMBER}) against ({NUMBER})"
    )
    for factor, card in cards(declaration, told):
        x, y, test = differences[factor, card.level]
        match = re.search(pattern, card.effects[0])
        assert match, card.effects[0]
        mean, low, high, n, relation, p, ours, theirs = match.groups()
        interval = test.confidence_interval(0.95)
        for text, exact in ((mean, (x - y).mean()), (low, interval.low), (high, interval.high)):
            assert shown(text, exact * by)
        assert shown(ours, x.mean() * by)
        assert shown(theirs, y.mean() * by)
        assert int(n) == len(x)
        if relation == "<":
            assert corrected[factor, card.level] < float(p)
        else:
            assert float(p) == pytest.approx(corrected[factor, card.level], rel=0.05)


def test_every_other_number_in_the_text_can_be_recomputed_from_the_csv(story):
    declaration, runs, told = story
    for factor, card in cards(declaration, told):
        exact = []
        for response in declaration["responses"]:
            x, y = pairs(runs, declaration, factor, card.level, response["name"])
            exact.append(len(x))
            if response["kind"] == "complexity":
                logs = np.log(x / y)
                half = stats.t.ppf(0.975, len(x) - 1) * logs.std() / math.sqrt(len(x))
                exact += [100 * math.expm1(logs.mean() + shift) for shift in (-half, 0, half)]
                exact += [side for mean in (stats.gmean(x), stats.gmean(y)) for side in (mean, 1000 * mean)]
            elif response.get("measure") == "median":
                exact += [*median_interval(x - y), x.median(), y.median(), np.isinf(x).sum(), np.isinf(y).sum()]
            else:
                by = 100 if response["unit"] == "%" else 1
                interval = stats.ttest_rel(x, y).confidence_interval(0.95)
                exact.append(100 * math.sqrt(abs(x.mean() * (1 - x.mean())) / synthetic.TEST_EXAMPLES))
                exact += [by * v for v in ((x - y).mean(), interval.low, interval.high, x.mean(), y.mean())]
        text = re.sub(r"95 % interval|p [<=] [\d.]+", "", " ".join(card.effects))
        for found in re.findall(NUMBER, text):
            assert any(shown(found, candidate) for candidate in exact), (found, text)


def test_times_to_the_target_can_be_recomputed_from_the_learning_curves(records):
    evidence = gather(records, "epidemic", "quick")
    curves = records.curves("epidemic")
    first = synthetic.conditions(synthetic.EPIDEMIC)[0]
    is_baseline = np.logical_and.reduce([evidence.runs[name] == level for name, level in first.items()])
    best = [curves.loc[curves["key"] == key, "validation_loss"].min() for key in evidence.runs["key"][is_baseline]]
    target = 1.05 * np.median(best)
    for run in evidence.runs.sample(10, random_state=0).itertuples():
        curve = curves[curves["key"] == run.key]
        arrived = curve.loc[curve["validation_loss"] <= target, "epoch"]
        assert run.epochs_to_target == (arrived.min() if len(arrived) else math.inf)
        assert run.seconds_to_target == pytest.approx(run.epochs_to_target * 40 * run.seconds_per_step)
        heights = (curve["validation_loss"].to_numpy()[1:] + curve["validation_loss"].to_numpy()[:-1]) / 2
        assert run.area_under_curve == pytest.approx(heights.mean())


def test_fine_print_can_be_recomputed_from_the_records(records):
    evidence = gather(records, "vision", "quick")
    declaration = evidence.declaration
    for factor, card in cards(declaration, tell(evidence)):
        keys = [pairs(evidence.runs, declaration, factor, card.level, "key")[side] for side in (0, 1)]
        x, y = pairs(evidence.runs, declaration, factor, card.level, "accuracy")
        assert card.pairs["level_key"].tolist() == keys[0].tolist()
        assert card.pairs["baseline_key"].tolist() == keys[1].tolist()
        assert card.pairs["level"].tolist() == x.tolist()
        right = [[np.equal(*answers(records, key)) for key in side] for side in keys]
        alone = [np.mean([(a & ~b).sum() for a, b in zip(*sides, strict=True)]) for sides in (right, right[::-1])]
        pooled = math.sqrt((x.var() + y.var()) / 2)
        exact = [
            100 * (x > y).mean(),
            *(100 * bound for bound in stats.binomtest(int((x > y).sum()), len(x)).proportion_ci(0.95)),
            100 * detectable(len(x), 0.05 / 7) * (x - y).std() / math.sqrt(len(x)),
            100 * math.sqrt(x.mean() * (1 - x.mean()) / 400),
            *alone,
            *(0, 1, 2, 3, 4, 5, 400, 80, 95, 0.05, 0.0625),
        ]
        text = " ".join(card.details)
        effect = re.search(rf"the effect is ({NUMBER}) \(Hedges' g\)", text)
        assert 0.7 < value(effect[1]) / ((x - y).mean() / pooled) < 1
        for found in re.findall(NUMBER, text.replace(effect[0], "")):
            assert any(shown(found, candidate) for candidate in exact), (found, text)


def test_summary_has_three_sentences_and_counts_every_verdict(story):
    declaration, runs, told = story
    assert len(told.summary) == 3
    verdicts = [card.verdict for _, card in cards(declaration, told)]
    for word in set(verdicts):
        assert f"{verdicts.count(word)} {word}" in told.summary[1]
    assert f"{len(runs)} finished runs" in told.summary[1]


def test_reference_forecasts_are_compared_with_the_baseline_network(records):
    told = tell(gather(records, "epidemic", "quick"))
    assert told.references[0].startswith("The baseline network beats persistence")
    assert "log-quadratic extrapolation" in told.references[1]


def test_comparisons_with_forecasts_without_a_network_can_be_recomputed(records):
    told, runs = tell(gather(records, "epidemic", "quick")), records.table("epidemic")
    for name, level in synthetic.conditions(synthetic.EPIDEMIC)[0].items():
        runs = runs[runs[name] == level]
    for column, sentence in zip(("persistence_error", "log_quadratic_error"), told.references, strict=True):
        test = stats.ttest_rel(runs["error"], runs[column])
        interval = test.confidence_interval(0.95)
        exact = [(runs["error"] - runs[column]).mean(), interval.low, interval.high, 6, 95]
        exact += [runs["error"].mean(), runs[column].mean()]
        for found in re.findall(NUMBER, sentence):
            assert any(shown(found, candidate) for candidate in exact), (found, sentence)


def test_seeds_that_an_undecided_verdict_asks_for_can_be_recomputed(tmp_path):
    records = Records(tmp_path)
    synthetic.write_study(records, synthetic.VISION, seeds=3)
    evidence = gather(records, "vision", "quick")
    asked = 0
    for factor, card in cards(evidence.declaration, tell(evidence)):
        match = re.search(r"About (\d+) more seeds? would", card.conclusion)
        if match:
            x, y = pairs(evidence.runs, evidence.declaration, factor, card.level, "accuracy")
            needed = 3 + int(match[1])
            assert not decides(needed - 1, 0.005 / (x - y).std())
            assert decides(needed, 0.005 / (x - y).std())
            asked += 1
    assert asked


def test_where_an_interval_without_zero_is_no_detection_its_corrected_p_value_says_why(tmp_path):
    records = Records(tmp_path)
    synthetic.write_study(records, synthetic.EPIDEMIC, seeds=3)
    evidence = gather(records, "epidemic", "quick")
    text = " ".join(" ".join(card.effects) for _, card in cards(evidence.declaration, tell(evidence)))
    undetected = (
        rf"no difference we could detect in [^:(]*: [^(]*\(95 % interval ({NUMBER}) to ({NUMBER})[^,;]*, n = 3([^;]*);"
    )
    found = re.findall(undetected, text)
    explained = [why for low, high, why in found if (low[0] == MINUS) == (high[0] == MINUS) and "0" not in (low, high)]
    assert explained
    assert all(float(re.search(r"p = ([\d.]+)", why)[1]) > 0.05 for why in explained)
    assert any(why.startswith(", corrected p = ") for why in explained)


def test_each_hypothesis_is_told_as_it_was_declared(story):
    declaration, _, told = story
    declared = [level["hypothesis"] for factor in declaration["factors"] for level in factor["levels"][1:]]
    for hypothesis, (_, card) in zip(declared, cards(declaration, told), strict=True):
        assert card.trying == f"Let's try {hypothesis['trying']}, because we might assume that {hypothesis['because']}."
        starts = [
            "The effect on accuracy was",
            "The effect on learning convergence was",
            "The effect on model complexity was",
        ]
        assert [any(sentence.startswith(start) for sentence in card.effects) for start in starts] == [True] * 3


def test_what_a_hypothesis_expects_of_other_responses_has_its_verdict_in_the_same_family(tmp_path):
    declaration = copy.deepcopy(synthetic.VISION)
    plain = gather_of(declaration, tmp_path / "plain")
    gap = declaration["factors"][2]["levels"][2]["hypothesis"]
    gap["also"] = [
        {"response": "shift_consistency", "expects": "worse", "margin": 0.001},
        {"response": "seconds_per_step", "expects": "equal", "margin": 0.02},
    ]
    evidence = gather_of(declaration, tmp_path / "also")
    card = next(card for _, card in cards(declaration, tell(evidence)) if card.level == "gap")
    assert "Of consistency under shifts: we expected a loss and found it. Supported." in card.conclusion
    assert (
        "Of time per training step: we expected no difference that matters and found one larger than 2 %. Contradicted."
        in card.conclusion
    )
    planned = evidence.effects[evidence.effects["verdict"] != ""]
    assert len(planned) == (plain.effects["verdict"] != "").sum() + 2
    assert planned["p_holm"].min() == pytest.approx(planned["p"].min() * len(planned))
    assert evidence.effects.loc[planned.index, "q"].isna().all()


def test_one_seed_tells_numbers_without_intervals(tmp_path):
    records = Records(tmp_path)
    synthetic.write_study(records, synthetic.EPIDEMIC, seeds=1)
    told = tell(gather(records, "epidemic", "quick"))
    assert told.references[0].startswith("One seed cannot tell whether the baseline network beats persistence: its")
    sentences = [*told.references, *(s for chapter in told.chapters for card in chapter.cards for s in card.effects)]
    assert any("(no interval, n = 1; " in sentence for sentence in sentences)
    assert not any("unknown" in sentence for sentence in sentences)


def _factors(names):
    return [factor for factor in synthetic.EPIDEMIC["factors"] if factor["name"] in names]


def test_one_factor_at_a_time_says_what_it_cannot_see_and_a_factorial_says_what_it_saw(records, tmp_path):
    alone = tell(gather(records, "epidemic", "quick"))
    assert "cannot see interactions" in alone.design[0]
    assert "ablate run epidemic --preset quick --design pairs adds" in alone.design[0]
    for varied, said in [(["depth"], "run two factors with their levels"), (["depth", "dense"], "pairs --strongest 2")]:
        few = Records(tmp_path / f"{len(varied)}")
        synthetic.write_study(few, synthetic.EPIDEMIC | {"factors": _factors(varied)}, seeds=3, details=False)
        assert said in tell(gather(few, "epidemic", "quick")).design[0]
    crossed = Records(tmp_path)
    synthetic.write_crossed(crossed, synthetic.EPIDEMIC, ["cell", "depth"], seeds=12)
    evidence = gather(crossed, "epidemic", "quick")
    told = tell(evidence)
    assert not any("changed several factors at once" in note for note in told.notes)
    runs = evidence.runs.pivot_table(index="seed", columns=["cell", "depth"], values="error")
    exact = runs["lstm", "2"] - runs["lstm", "1"] - runs["gru", "2"] + runs["gru", "1"]
    sentence = next(s for s in told.design if "recurrent cell lstm and recurrent layers 2" in s)
    mean, low, high = re.search(rf"({NUMBER}) of peak .*interval ({NUMBER}) to ({NUMBER})", sentence).groups()
    interval = stats.ttest_1samp(exact, 0).confidence_interval(0.95)
    assert shown(mean, exact.mean())
    assert shown(low, interval.low)
    assert shown(high, interval.high)


def test_mixed_machines_and_other_data_are_named(tmp_path):
    records = Records(tmp_path)
    synthetic.write_study(records, synthetic.VISION, seeds=3, details=False)
    shift, rotate = synthetic.conditions(synthetic.VISION)[1:3]
    synthetic.write_run(records, synthetic.VISION, shift, 0, machine=1, details=False)
    synthetic.write_run(records, synthetic.VISION, rotate, 1, split="other", details=False)
    evidence = gather(records, "vision", "quick")
    notes = " ".join(evidence.notes)
    assert "1 run saw other data than the baseline's run of the same seed" in notes
    assert "they differ in cpu" in notes
    assert evidence.environment["cpu"] == ["synthetic processor 0", "synthetic processor 1"]
    rows = evidence.effects[evidence.effects["response"] == "accuracy"].set_index("level")
    assert (rows.loc["rotate", "n"], rows.loc["shift", "n"]) == (2, 3)


def test_of_data_that_changed_only_the_runs_on_the_newest_are_used(tmp_path):
    records = Records(tmp_path)
    records.declare(synthetic.VISION)
    base, shift, rotate = synthetic.conditions(synthetic.VISION)[:3]
    for levels, edition, seeds in [(base, 2, 3), (base, 10, 4), (shift, 2, 4), (shift, 10, 4), (rotate, 2, 3)]:
        for seed in range(seeds):
            synthetic.write_run(records, synthetic.VISION, levels, seed, edition=edition, details=False)
    evidence = gather(records, "vision", "quick")
    assert set(evidence.runs["data_version"]) == {"10"}
    assert len(evidence.runs) == 8
    assert "10 runs on data that have changed since left out" in " ".join(evidence.notes)


def test_a_level_that_changes_the_data_is_compared_but_not_called_paired(tmp_path):
    records = Records(tmp_path)
    base, shift = synthetic.conditions(synthetic.VISION)[:2]
    records.declare(synthetic.VISION)
    for seed in range(3):
        synthetic.write_run(records, synthetic.VISION, base, seed, details=False)
        synthetic.write_run(records, synthetic.VISION, shift, seed, split="shifted", details=False)
    evidence = gather(records, "vision", "quick")
    assert "Under augmentation shift, the data themselves are other" in " ".join(evidence.notes)
    assert evidence.effects["n"].max() == 3


def test_divergence_is_a_rate_with_its_interval_and_never_reaches_the_target(tmp_path):
    records = Records(tmp_path)
    synthetic.write_study(records, synthetic.VISION, seeds=4)
    gap = synthetic.conditions(synthetic.VISION)[-1]
    synthetic.write_run(records, synthetic.VISION, gap, 3, status="diverged", message="loss is NaN")
    evidence = gather(records, "vision", "quick")
    card = next(card for chapter in tell(evidence).chapters for card in chapter.cards if card.level == "gap")
    low, high = (100 * bound for bound in stats.binomtest(1, 4).proportion_ci(0.95))
    rate = f"1 of 4 runs diverged (95 % interval of the rate {low:.0f} to {high:.0f} %) and 0 of 4 of the baseline"
    assert rate in " ".join(card.effects)
    row = evidence.effects.query("level == 'gap' and response == 'epochs_to_target'").iloc[0]
    assert row["n"] == 4
    assert row["missed"] >= 1


def test_a_run_that_reached_the_target_and_then_diverged_never_reached_it(tmp_path):
    records = Records(tmp_path)
    synthetic.write_study(records, synthetic.VISION, seeds=3)
    key = synthetic.write_run(records, synthetic.VISION, synthetic.conditions(synthetic.VISION)[-1], 2).key
    (run,) = [run for run in records.configurations("vision") if run.key == key]
    early = records.curves("vision", [key]).drop(columns="key").assign(validation_accuracy=1.0)
    result = Result("diverged", {}, "loss is NaN", {"split": "2 "})
    records.save(run, result, environment=records.environment("vision", key), curve=early)
    runs = gather(records, "vision", "quick").runs.set_index("key")
    assert math.isinf(runs.loc[key, "epochs_to_target"])


def test_missed_values_are_named_beside_the_numbers(tmp_path):
    records = Records(tmp_path)
    synthetic.write_study(records, synthetic.VISION, seeds=4)
    evidence = gather(records, "vision", "quick")
    runs = evidence.runs.copy()
    runs.loc[(runs["head"] == "gap") & (runs["seed"] == 1), "epochs_to_converge"] = np.inf
    told = tell(replace(evidence, runs=runs, effects=effects(runs, evidence.declaration)))
    card = next(card for chapter in told.chapters for card in chapter.cards if card.level == "gap")
    assert "Without a finite value of epochs to converge: 1 run of this level and no runs of the baseline" in " ".join(
        card.effects
    )


def test_numbers_are_humane():
    assert number(-0.02994, 4, sign=True) == f"{MINUS}0.0299"
    assert number(0.00001, 2, sign=True) == "0.00"
    assert number(12931.0) == "12,931"
    assert number(0.004567) == "0.00457"
    assert number(math.nan) == "unknown"
    assert [decimals(x) for x in (0.0053, 0.17, 2.5, 40.0)] == [4, 2, 1, 0]
    assert [p_value(p) for p in (0.0004, 0.0312, 1.0, math.nan)] == ["p < 0.001", "p = 0.031", "p = 1", "p unknown"]
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(["a b", "c", "d"], "; ") == "a b; c; and d"
    assert [count(n, "run") for n in (0, 1, 2)] == ["no runs", "1 run", "2 runs"]
    assert [in_sentence(label) for label in ("Test accuracy", "SIR error")] == ["test accuracy", "SIR error"]
