"""Claims of the statistics: intervals cover, families stay honest, planted effects are found and nulls are not."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import stats

from ablations.records import Records
from ablations.statistics import (
    ALPHA,
    Difference,
    area_under_curve,
    baseline_target,
    benjamini_hochberg,
    binomial_error,
    bootstrap_interval,
    crossed_cells,
    effects,
    equivalence_p,
    hedges,
    holm,
    interactions,
    interquartile_mean,
    judge,
    main_effects,
    mcnemar,
    mean_interval,
    one_factor_runs,
    paired_difference,
    paired_median,
    paired_ratio,
    pareto_front,
    performance_profile,
    probability_of_improvement,
    proportion_interval,
    seeds_to_decide,
    seeds_to_place,
    share_reached,
    smallest_detectable,
    time_to_target,
)
from ablations.statistics.paired import smallest_exact_p


def seeds(values: list[float] | np.ndarray, first: int = 0) -> pd.Series:
    return pd.Series(values, index=range(first, first + len(values)), dtype=float)


@pytest.mark.parametrize("n", [5, 10, 30])
def test_interval_covers_the_truth_in_93_to_97_of_100_cases(n):
    draws = np.random.default_rng(n).normal(1.0, 2.0, size=(4000, n))
    covered = [low <= 1.0 <= high for _, low, high in map(mean_interval, draws)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_family_without_effects_is_rejected_in_at_most_5_of_100_cases():
    differences = np.random.default_rng(0).normal(size=(20_000, 7, 8))
    p = stats.ttest_1samp(differences, 0.0, axis=2).pvalue
    rejected = sum((holm(family) <= ALPHA).any() for family in p)
    assert stats.binomtest(rejected, len(p), ALPHA, alternative="greater").pvalue > 0.01


def test_planted_null_is_supported_no_more_often_than_alpha():
    draws = np.random.default_rng(1).normal(0.0, 1.0, size=(800, 6))
    words = []
    for draw in draws:
        difference = paired_difference(seeds(draw), seeds(np.zeros(6)))
        words.append(judge("better", 2.0, "higher", difference, difference.p, equivalence_p(difference, 2.0), 1).word)
    assert np.mean([word == "supported" for word in words]) <= ALPHA
    assert {"equivalent", "undecided"} <= set(words)


def test_effect_as_large_as_the_margin_is_called_equivalent_no_more_often_than_alpha():
    draws = np.random.default_rng(2).normal(1.0, 0.7, size=(2000, 8))
    p = [equivalence_p(paired_difference(seeds(draw), seeds(np.zeros(8))), 1.0) for draw in draws]
    assert stats.binomtest(sum(np.array(p) <= ALPHA), len(p), ALPHA, alternative="greater").pvalue > 0.01


def test_asked_seeds_reach_the_promised_power():
    n = seeds_to_decide(sd=1.0, margin=1.2)
    assert n is not None
    rng = np.random.default_rng(3)
    detected = stats.ttest_1samp(rng.normal(1.2, 1.0, size=(4000, n)), 0.0, axis=1).pvalue <= ALPHA
    nulls = rng.normal(0.0, 1.0, size=(4000, n))
    error = nulls.std(axis=1, ddof=1) / math.sqrt(n)
    confirmed = stats.t.sf((1.2 - abs(nulls.mean(axis=1))) / error, n - 1) <= ALPHA
    assert detected.mean() >= 0.79
    assert confirmed.mean() >= 0.79
    assert min(detected.mean(), confirmed.mean()) <= 0.90


@pytest.mark.parametrize("true", [1.6, 0.4])
def test_where_a_difference_was_detected_the_asked_seeds_place_it_with_the_promised_power(true):
    rng = np.random.default_rng(6)
    estimate = Difference(true, 0.0, 0.0, 8, 1.0, 0.0, 0.0)
    assert judge("equal", 1.0, "higher", estimate, 0.01, 0.5, 1).more_seeds == seeds_to_place(estimate, 1.0) - 8
    n = seeds_to_place(estimate, 1.0)
    found = [paired_difference(seeds(draw), seeds(np.zeros(n))) for draw in rng.normal(true, 1.0, size=(2000, n))]
    placed = [d.low > 1 if true > 1 else equivalence_p(d, 1.0) <= ALPHA for d in found]
    assert 0.77 <= np.mean(placed) <= 0.86


def test_an_estimate_at_the_margin_asks_for_no_number_of_seeds():
    assert seeds_to_place(Difference(1.0, 0.0, 0.0, 8, 1.0, 0.0, 0.0), 1.0) is None
    assert seeds_to_place(Difference(2.0, 0.0, 0.0, 8, 0.0, 0.0, 0.0), 1.0) is None


def test_hopeless_spread_asks_for_no_number_of_seeds():
    assert seeds_to_decide(sd=1.0, margin=0.01) is None
    assert seeds_to_decide(sd=0.0, margin=0.01) is None


def test_paired_difference_is_the_one_sample_t_test_of_the_differences():
    rng = np.random.default_rng(4)
    level, baseline = rng.normal(size=9), rng.normal(size=9)
    difference = paired_difference(seeds(level), seeds(baseline))
    reference = stats.ttest_rel(level, baseline)
    interval = reference.confidence_interval(0.95)
    found = (difference.p, difference.low, difference.high, difference.mean)
    assert found == pytest.approx((reference.pvalue, interval.low, interval.high, (level - baseline).mean()))


def test_only_seeds_on_both_sides_are_paired():
    difference = paired_difference(seeds([1, 2, 3]), seeds([1, 1, 1], first=1))
    assert (difference.n, difference.mean) == (2, 1.5)


def test_values_that_are_not_finite_make_no_pair():
    difference = paired_difference(seeds([1.0, np.inf, np.nan, 4.0]), seeds(np.zeros(4)))
    assert (difference.n, difference.mean) == (2, 2.5)


def test_sign_flip_p_counts_all_patterns():
    assert paired_difference(seeds([1, 2, 3, 4, 5]), seeds(np.zeros(5))).p_sign_flip == 2 / 2**5
    reference = stats.permutation_test(([1.0, -2, 3, 4, 5, 7],), np.mean, permutation_type="samples", n_resamples=64)
    found = paired_difference(seeds([1, -2, 3, 4, 5, 7]), seeds(np.zeros(6))).p_sign_flip
    assert found == pytest.approx(reference.pvalue)


def test_sampled_sign_flips_agree_with_the_t_test_on_many_seeds():
    difference = paired_difference(seeds(np.random.default_rng(5).normal(0.3, 1, size=30)), seeds(np.zeros(30)))
    assert difference.p_sign_flip == pytest.approx(difference.p, abs=0.02)


@pytest.mark.parametrize(("n", "can"), [(5, False), (6, True)])
def test_five_seeds_cannot_reach_alpha_by_sign_flips_and_six_can(n, can):
    difference = paired_difference(seeds(np.arange(1.0, n + 1)), seeds(np.zeros(n)))
    assert (smallest_exact_p(n) <= ALPHA) is can
    assert (difference.p_sign_flip <= ALPHA) is can


def test_holm_agrees_with_a_hand_calculation_and_keeps_untested_members():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, math.nan])[0] == pytest.approx(0.04)
    assert math.isnan(holm([0.02, math.nan])[1])
    assert len(holm([])) == 0


def test_ratio_is_the_geometric_mean_of_pairs():
    ratio = paired_ratio(seeds([2.0, 8.0]), seeds([1.0, 2.0]))
    assert ratio.mean == pytest.approx(math.sqrt(2 * 4) - 1)
    assert ratio.low < ratio.mean < ratio.high


def test_one_seed_and_equal_differences_give_no_interval_and_no_verdict():
    for difference in (
        paired_difference(seeds([1.0]), seeds([0.5])),
        paired_difference(seeds([0.3, 0.4, 0.5]), seeds([0.2, 0.3, 0.4])),
        paired_difference(seeds([]), seeds([])),
    ):
        assert math.isnan(difference.low)
        assert math.isnan(difference.p)
        verdict = judge("better", 0.1, "higher", difference, difference.p, equivalence_p(difference, 0.1), 1)
        assert (verdict.word, verdict.more_seeds) == ("undecided", None)


def made(mean: float, half: float) -> Difference:
    """A difference of ten seeds whose 95 % interval is mean +- half."""
    sd = half / float(stats.t.ppf(0.975, 9)) * math.sqrt(10)
    p = 2 * float(stats.t.sf(abs(mean) / (sd / math.sqrt(10)), 9))
    return Difference(mean, mean - half, mean + half, 10, sd, p, p)


@pytest.mark.parametrize(
    ("expects", "better", "mean", "half", "word"),
    [
        ("better", "higher", 2.0, 0.5, "supported"),
        ("better", "lower", 2.0, 0.5, "contradicted"),
        ("worse", "lower", 2.0, 0.5, "supported"),
        ("worse", "higher", 2.0, 0.5, "contradicted"),
        ("better", "higher", 0.1, 0.5, "equivalent"),
        ("better", "higher", 0.4, 0.3, "equivalent"),  # there, but too small to matter
        ("better", "higher", 0.8, 1.0, "undecided"),
        ("equal", "higher", 0.1, 0.5, "supported"),
        ("equal", "higher", -2.0, 0.5, "contradicted"),
        ("equal", "higher", 1.3, 0.5, "undecided"),  # a difference, but perhaps within the margin
    ],
)
def test_verdict_follows_the_stated_rules(expects, better, mean, half, word):
    difference = made(mean, half)
    verdict = judge(expects, 1.0, better, difference, difference.p, equivalence_p(difference, 1.0), 1)
    assert verdict.word == word
    assert (verdict.more_seeds is not None) == (word == "undecided")


@pytest.fixture(scope="module")
def epidemic(tmp_path_factory):
    records = Records(tmp_path_factory.mktemp("runs"))
    synthetic.write_study(records, synthetic.EPIDEMIC, seeds=8)
    base, lstm = synthetic.conditions(synthetic.EPIDEMIC)[:2]
    synthetic.write_run(records, synthetic.EPIDEMIC, lstm, 20, status="diverged", message="loss is NaN")
    synthetic.write_run(records, synthetic.EPIDEMIC, base, 20)
    synthetic.write_run(records, synthetic.EPIDEMIC, lstm | {"depth": "2"}, 0)
    return records.table("epidemic")


def test_planted_effects_are_recovered_within_their_intervals(epidemic):
    found = effects(epidemic, synthetic.EPIDEMIC).set_index(["response", "factor", "level"]).loc["error"]
    planted = pd.Series(synthetic.PLANTED["epidemic"]).reindex(found.index, fill_value=0.0)
    assert ((found["low"] <= planted) & (planted <= found["high"])).sum() >= len(found) - 1
    assert found.loc[[("cell", "lstm"), ("cell", "rnn"), ("history", "7")], "verdict"].tolist() == ["supported"] * 3
    assert found.loc[("history", "28"), "verdict"] in ("equivalent", "undecided")


def test_diverged_runs_are_counted_and_never_averaged(epidemic):
    row = effects(epidemic, synthetic.EPIDEMIC).query("response == 'error' and level == 'lstm'").iloc[0]
    assert (row["diverged"], row["tried"], row["n"]) == (1, 9, 8)


def test_runs_that_change_two_factors_are_not_compared(epidemic):
    compared = one_factor_runs(epidemic, synthetic.EPIDEMIC)
    assert not ((compared["cell"] == "lstm") & (compared["depth"] == "2")).any()


def test_counts_have_no_interval_and_times_are_ratios(epidemic):
    found = effects(epidemic, synthetic.EPIDEMIC)
    measures = found.groupby("response")["measure"].unique().map(list).to_dict()
    assert measures["parameters"] == ["exact"]
    assert measures["seconds_per_step"] == ["ratio"]
    assert found.loc[found["response"] == "parameters", "low"].isna().all()


def test_levels_come_in_the_order_of_the_study(epidemic):
    compared = one_factor_runs(epidemic, synthetic.EPIDEMIC)
    for factor in synthetic.EPIDEMIC["factors"]:
        found = compared.loc[compared["factor"] == factor["name"], "level"].unique().tolist()
        assert found == [level["name"] for level in factor["levels"]]


def test_a_level_that_the_declaration_lacks_is_left_out(epidemic):
    strange = epidemic.assign(cell=epidemic["cell"].replace("rnn", "unknown"))
    assert "unknown" not in set(one_factor_runs(strange, synthetic.EPIDEMIC)["level"])


@pytest.mark.parametrize(("n", "least"), [(5, 0.87), (10, 0.88), (30, 0.91)])
def test_interval_of_skewed_data_covers_at_least_what_is_stated(n, least):
    """Exponential differences: skewness 2, more than paired differences of accuracies show."""
    draws = np.random.default_rng(n).exponential(1.0, size=(4000, n))
    covered = np.mean([low <= 1.0 <= high for _, low, high in map(mean_interval, draws)])
    assert least <= covered <= 0.97


def test_bootstrap_interval_covers_as_promised_from_twenty_seeds_on():
    draws = np.random.default_rng(6).normal(1.0, 2.0, size=(300, 20))
    intervals = [bootstrap_interval(seeds(draw), seeds(np.zeros(20))) for draw in draws]
    covered = sum(low <= 1.0 <= high for low, high in intervals)
    assert stats.binomtest(covered, 300, 0.93).pvalue > 0.01


def test_bootstrap_interval_of_few_seeds_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"19 seed pairs are too few .* needs 20; use the t interval"):
        bootstrap_interval(seeds(np.arange(19.0)), seeds(np.zeros(19)))


def test_a_difference_of_the_smallest_detectable_size_is_detected_with_the_promised_power():
    smallest = smallest_detectable(sd=1.0, n=8)
    draws = np.random.default_rng(7).normal(smallest, 1.0, size=(6000, 8))
    detected = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= ALPHA).mean()
    assert detected == pytest.approx(0.80, abs=0.015)
    assert smallest_detectable(sd=1.0, n=8, alpha=ALPHA / 6) > smallest
    assert math.isnan(smallest_detectable(sd=1.0, n=1))
    assert math.isnan(smallest_detectable(sd=0.0, n=8))


@pytest.mark.parametrize("n", [5, 16])
@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_effect_size_is_unbiased_whether_or_not_seeds_share_their_noise(n, shared):
    rng = np.random.default_rng(8)
    common = shared * rng.normal(size=(3000, n))
    baseline, level = common + rng.normal(size=(3000, n)), common + 1.0 + rng.normal(size=(3000, n))
    found = np.mean([hedges(seeds(x), seeds(y)) for x, y in zip(level, baseline, strict=True)])
    assert found == pytest.approx(1.0 / math.sqrt(1 + shared**2), rel=0.06)


def test_benjamini_hochberg_agrees_with_a_hand_calculation_and_leaves_out_what_was_not_tested():
    assert benjamini_hochberg([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.04, 0.04], nan_ok=True)


def test_false_discoveries_of_an_exploration_stay_below_alpha():
    rng = np.random.default_rng(9)
    shares = []
    for _ in range(1000):
        p = stats.ttest_1samp(rng.normal(size=(20, 8)) + np.repeat([2.0, 0.0], [5, 15])[:, None], 0.0, axis=1).pvalue
        found = benjamini_hochberg(p) <= ALPHA
        shares.append(found[5:].sum() / max(found.sum(), 1))
    assert np.mean(shares) <= ALPHA


def test_a_run_that_never_arrives_stays_in_the_median():
    level, baseline = seeds([3, 4, np.inf, 5, 6, 7, np.inf]), seeds([5, 5, 5, 5, 5, 5, np.inf])
    found = paired_median(level, baseline)
    assert (found.mean, found.low, found.high, found.n) == (0.0, -2.0, math.inf, 7)
    assert found.p == stats.binomtest(3, 5).pvalue  # 2 sooner, 3 later, 2 ties


def test_interval_of_the_median_covers_at_least_95_of_100_cases_also_of_skewed_data():
    draws = np.random.default_rng(10).exponential(1.0, size=(800, 11))
    found = [paired_median(seeds(draw), seeds(np.zeros(11))) for draw in draws]
    assert np.mean([d.low <= math.log(2) <= d.high for d in found]) >= 0.95
    assert math.isnan(paired_median(seeds(np.arange(5.0)), seeds(np.zeros(5))).low)


def test_probability_of_improvement_counts_ties_half_and_widens_for_them():
    share, low, high = probability_of_improvement(seeds([2, 2, 1, 0]), seeds([1, 1, 1, 1]), "higher")
    assert share == 0.625
    assert (low, high) == (proportion_interval(2, 4)[0], proportion_interval(3, 4)[1])
    assert probability_of_improvement(seeds([2.0]), seeds([1.0]), "lower")[0] == 0.0


def test_binomial_error_is_the_spread_of_accuracies_over_test_sets():
    accuracies = np.random.default_rng(11).binomial(500, 0.9, size=20_000) / 500
    assert binomial_error(0.9, 500) == pytest.approx(accuracies.std(), rel=0.02)


def test_mcnemar_counts_only_examples_on_which_the_models_differ():
    level = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 1], dtype=bool)
    baseline = np.array([0, 0, 0, 0, 0, 0, 1, 1, 0, 1], dtype=bool)
    found = mcnemar(level, baseline)
    assert (found.only_level, found.only_baseline) == (6, 1)
    assert found.p == pytest.approx(2 * (1 + 7) / 2**7)
    with pytest.raises(ValueError, match="not paired"):
        mcnemar(level, baseline[:-1])


def crossed(seed: int, interaction: float, n: int = 8, noise: float = 0.01) -> pd.DataFrame:
    """A 2 x 3 x 2 factorial; each seed shifts all its runs, and reacts to `a` in its own way."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        shift, reaction = rng.normal(0, 1), rng.normal(0.5, 0.02)
        for a, b, c in itertools.product(("0", "1"), ("x", "y", "z"), ("p", "q")):
            value = shift + reaction * (a == "1") + 0.2 * (b == "y") + interaction * (a == "1" and b == "z")
            rows.append({"a": a, "b": b, "c": c, "seed": k, "status": "done", "y": value + noise * rng.normal()})
    return pd.DataFrame(rows)


def factor(name: str, *levels: str) -> dict:
    return {"name": name, "label": name, "levels": [{"name": level, "hypothesis": None} for level in levels]}


CROSSED = {"factors": [factor("a", "0", "1"), factor("b", "x", "y", "z"), factor("c", "p", "q")]}


def test_planted_interaction_is_found_and_no_other():
    found = interactions(crossed(0, 0.3), CROSSED, "y").set_index(["factor", "level", "other_factor", "other_level"])
    assert found.loc[("a", "1", "b", "z"), "mean"] == pytest.approx(0.3, abs=0.02)
    assert set(found["settings"]) == {2, 3}
    assert found.index[found["q"] <= ALPHA].tolist() == [("a", "1", "b", "z")]


def test_cells_of_a_crossing_leave_out_settings_in_which_only_one_factor_changed():
    runs = crossed(3, 0.3)
    runs.loc[runs["c"] == "q", "y"] += 5
    some = runs[(runs["c"] == "p") | ((runs["a"] == "0") & (runs["b"] == "x"))]
    cells = crossed_cells(some, CROSSED, "a", "b", "y").set_index(["level", "other_level"])
    plain = runs[(runs["c"] == "p")].groupby(["a", "b"])["y"].mean()
    for cell, value in plain.items():
        assert cells.loc[cell, "value"] == pytest.approx(value)
        assert cells.loc[cell, "mean"] == pytest.approx(value - plain["0", "x"])


def test_main_effect_averages_over_the_other_factors():
    found = main_effects(crossed(1, 0.3), CROSSED, "y").set_index(["factor", "level"])
    assert found.loc[("a", "1"), "mean"] == pytest.approx(0.5 + 0.3 / 3, abs=0.03)
    assert found.loc[("b", "y"), "mean"] == pytest.approx(0.2, abs=0.02)
    assert found.loc[("a", "1"), "settings"] == 6


def test_interactions_without_any_are_found_in_at_most_5_of_100_families():
    hits = [(interactions(crossed(seed, 0.0, n=5), CROSSED, "y")["q"] <= ALPHA).any() for seed in range(100, 180)]
    assert stats.binomtest(sum(hits), len(hits), ALPHA, alternative="greater").pvalue > 0.01


def test_a_seed_that_lacks_a_setting_is_left_out_and_one_factor_at_a_time_has_no_interactions():
    runs = crossed(2, 0.3)
    lacking = runs.drop(index=runs.index[(runs["seed"] == 3) & (runs["a"] == "1") & (runs["b"] == "z")][:1])
    found = interactions(lacking, CROSSED, "y").set_index(["level", "other_level"])
    assert (found.loc[("1", "z"), "n"], found.loc[("1", "y"), "n"]) == (7, 8)
    changed = (runs["a"] != "0").astype(int) + (runs["b"] != "x") + (runs["c"] != "p")
    assert interactions(runs[changed <= 1], CROSSED, "y").empty
    assert main_effects(runs[changed <= 1], CROSSED, "y").empty


def curve(key: str, losses: list[float]) -> pd.DataFrame:
    epoch = np.arange(1, len(losses) + 1)
    return pd.DataFrame({"key": key, "epoch": epoch, "step": 40 * epoch, "validation_loss": losses})


def test_target_is_the_baselines_median_best_and_a_miss_is_infinite():
    curves = pd.concat([curve("a", [3, 1, 2]), curve("b", [3, 2, 1.5]), curve("c", [4, 3, 2])])
    target = baseline_target(curves, "validation_loss", "lower")
    assert target.value == pytest.approx(1.5 * 1.05)
    assert time_to_target(curves, target, "epoch").to_dict() == {"a": 2, "b": 3, "c": math.inf}
    assert time_to_target(curves, target, "step")["a"] == 80
    right = curves.assign(validation_accuracy=1 - curves["validation_loss"] / 10)
    assert baseline_target(right, "validation_accuracy", "higher").value == pytest.approx(1 - 0.15 * 1.05)


def test_area_under_the_curve_is_its_mean_height():
    curves = pd.concat([curve("flat", [2, 2, 2, 2]), curve("fall", [3, 2, 1]), curve("point", [5])])
    assert area_under_curve(curves, "validation_loss").to_dict() == {"fall": 2, "flat": 2, "point": 5}


def test_share_reached_agrees_with_kaplan_and_meiers_product():
    times = pd.Series([2.0, 3.0, np.inf, 5.0, np.inf])
    found = share_reached(times, pd.Series([9, 9, 4, 9, 9])).set_index("time")["share"]
    assert found.loc[[0, 2, 3, 5]].tolist() == pytest.approx([0, 1 / 5, 2 / 5, 1 - 3 / 5 * 1 / 2])


def test_share_reached_is_unbiased_under_censoring():
    rng = np.random.default_rng(12)
    times, watched = rng.exponential(1.0, 4000), rng.uniform(0, 3, 4000)
    found = share_reached(pd.Series(np.where(times <= watched, times, np.inf)), pd.Series(watched))
    at_one = found[found["time"] <= 1.0].iloc[-1]
    assert at_one["share"] == pytest.approx(1 - math.exp(-1), abs=0.03)
    assert at_one["low"] < 1 - math.exp(-1) < at_one["high"]


def test_pareto_front_holds_what_nothing_beats():
    points = pd.DataFrame({"size": [1, 2, 2, 3, 4], "right": [0.5, 0.7, 0.9, 0.8, 0.95]}, index=list("abcde"))
    assert pareto_front(points, "size", "right").index.tolist() == ["a", "c", "e"]
    assert pareto_front(points, "size", "right", better="lower").index.tolist() == ["a"]


def test_interquartile_mean_ignores_outlying_runs_and_covers_the_truth():
    rng = np.random.default_rng(13)
    scores = pd.DataFrame(rng.normal(1.0, 0.1, size=(12, 8)))
    scores.iloc[0] = 40.0
    middle, low, high = interquartile_mean(scores)
    assert middle == pytest.approx(1.0, abs=0.05)
    assert low < middle < high
    with pytest.raises(ValueError, match="7 conditions are too few"):
        interquartile_mean(scores.iloc[:7])


def test_performance_profile_is_the_share_of_runs_that_pass():
    scores = pd.DataFrame(np.arange(40.0).reshape(10, 4))
    profile = performance_profile(scores, [0, 10, 39, 40])
    assert profile["share"].tolist() == [1.0, 0.75, 1 / 40, 0.0]
    assert performance_profile(scores, [9], better="lower")["share"].tolist() == [0.25]
    assert (profile["low"] <= profile["share"]).all()
    assert (profile["share"] <= profile["high"]).all()


def test_interval_of_the_share_reached_covers_also_with_few_runs_and_under_censoring():
    rng = np.random.default_rng(14)
    covered = []
    for _ in range(1500):
        times, watched = rng.exponential(1.0, 8), rng.choice([0.5, 3.0], 8, p=[0.3, 0.7])
        found = share_reached(pd.Series(np.where(times <= watched, times, np.inf)), pd.Series(watched))
        row = found[found["time"] <= 1.0].iloc[-1]
        covered.append(row["low"] <= 1 - math.exp(-1) <= row["high"])
    assert np.mean(covered) >= 0.93


def null_study(seed: int, n: int = 6) -> tuple[pd.DataFrame, dict]:
    """Six hypotheses of three kinds, none of which is true of anything, over seeds that share most of their noise."""
    rng = np.random.default_rng(seed)
    names = [f"level {k}" for k in range(6)]
    shared = rng.normal(size=n)
    rows = [
        {"choice": name, "seed": k, "status": "done", "score": shared[k] + 0.3 * rng.normal()}
        for name in ["baseline", *names]
        for k in range(n)
    ]
    kinds = ("better", "worse", "better", "worse", "better", "worse")
    hypotheses = [{"trying": "it", "because": "why not", "expects": kind, "margin": 0.5} for kind in kinds]
    levels = [{"name": "baseline", "hypothesis": None}]
    levels += [{"name": name, "hypothesis": h} for name, h in zip(names, hypotheses, strict=True)]
    score = {"name": "score", "label": "score", "kind": "accuracy", "better": "higher", "unit": ""}
    return pd.DataFrame(rows), {"factors": [{"name": "choice", "levels": levels}], "responses": [score]}


def test_studies_without_effects_support_a_hypothesis_in_at_most_5_of_100():
    """Families share the baseline's runs, so their differences are correlated; Holm must hold all the same."""
    words = [effects(*null_study(seed))["verdict"] for seed in range(60)]
    decided = sum(word.isin(["supported", "contradicted"]).any() for word in words)
    assert stats.binomtest(decided, len(words), ALPHA, alternative="greater").pvalue > 0.01
    assert {"equivalent", "undecided"} <= set(pd.concat(words))
