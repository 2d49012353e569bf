"""Claims of the statistics: intervals cover, families stay honest, planted effects are found and nulls are not."""

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
    effects,
    equivalence_p,
    holm,
    judge,
    mean_interval,
    one_factor_runs,
    paired_difference,
    paired_ratio,
    seeds_to_decide,
)


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
    assert difference.sign_flip_can_decide is can
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
    assert (row["unfinished"], row["n"]) == (1, 8)


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
