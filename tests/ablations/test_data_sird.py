"""Claims on the epidemic simulator: invariants and published peaks, attack rates and noise-free forecast errors."""

import numpy as np
import pytest

from ablations.data import sird


def rates(r0=2.5, mu=0.1, nu=0.98, initial=1e-4):
    return sird.Rates(*(np.array([value]) for value in (r0 * mu, mu, nu, initial)))


def random_rates(count=20):
    return sird.draw_rates(count, np.random.default_rng(7))


@pytest.mark.parametrize("solve", [sird.daily_map, sird.ode])
def test_compartments_sum_to_the_population_on_every_day(solve):
    np.testing.assert_allclose(sum(solve(random_rates(), 300)), 1, rtol=1e-12)


@pytest.mark.parametrize("solve", [sird.daily_map, sird.ode])
def test_compartments_stay_between_zero_and_the_population(solve):
    course = np.stack(solve(random_rates(), 300))
    assert course.min() >= 0
    assert course.max() <= 1


@pytest.mark.parametrize("solve", [sird.daily_map, sird.ode])
def test_share_of_the_removed_that_died_is_one_minus_nu(solve):
    drawn = random_rates()
    course = solve(drawn, 200)
    died = course.dead[:, 1:] / (course.recovered + course.dead)[:, 1:]
    np.testing.assert_allclose(died, np.repeat(1 - drawn.nu[:, None], 199, axis=1), rtol=1e-9)


def conserved(drawn, course):
    mu_over_beta = (drawn.mu / drawn.beta)[:, None]
    return course.susceptible + course.infectious - mu_over_beta * np.log(course.susceptible)


def test_the_ode_conserves_what_the_daily_map_does_not():
    drawn = random_rates()
    drift = {solve: np.ptp(conserved(drawn, solve(drawn, 200)), axis=1) for solve in (sird.ode, sird.daily_map)}
    assert drift[sird.ode].max() < 1e-7
    assert drift[sird.daily_map].min() > 1e-3


@pytest.mark.parametrize(("solve", "day", "height"), [(sird.ode, 64, 0.2335), (sird.daily_map, 68, 0.2411)])
def test_peak_day_and_height_are_those_known_for_map_and_ode(solve, day, height):
    infectious = solve(rates(), 300).infectious[0]
    assert infectious.argmax() == day
    assert infectious.max() == pytest.approx(height, abs=5e-5)


@pytest.mark.parametrize(("r0", "peak", "attack_rate"), [(2.5, 0.2335, 0.8926), (2, 0.1534, 0.7968)])
def test_peak_height_and_attack_rate_follow_from_r0(r0, peak, attack_rate):
    course = sird.ode(rates(r0, initial=1e-6), 800)
    assert course.infectious.max() == pytest.approx(peak, abs=2e-4)  # days fall beside the true maximum
    assert 1 - course.susceptible[0, -1] == pytest.approx(attack_rate, abs=5e-5)


def test_the_first_step_of_the_map_is_the_equation():
    first, second = np.stack(sird.daily_map(rates(initial=0.01), 2))[:, 0].T
    infections, removals = 0.25 * 0.99 * 0.01, 0.1 * 0.01
    np.testing.assert_allclose(second - first, [-infections, infections - removals, 0.98 * removals, 0.02 * removals])


def test_draws_lie_in_the_stated_ranges_and_fill_them():
    drawn = random_rates(5000)
    for values, low, high in (
        (drawn.beta / drawn.mu, 1.5, 4),
        (1 / drawn.mu, 4, 14),
        (drawn.nu, 0.9, 0.999),
        (np.log10(drawn.initial), -5, -3),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high


@pytest.mark.parametrize("simulate", [sird.binomial_chain, sird.gillespie])
def test_stochastic_epidemics_move_whole_people_and_lose_none(simulate):
    drawn, population = random_rates(3), 500
    counts = population * np.stack(simulate(drawn, 60, population, np.random.default_rng(1)))
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    np.testing.assert_allclose(counts.sum(axis=0), population)
    assert counts.min() >= 0
    assert (np.diff(counts[[2, 3]], axis=-1) >= 0).all()


def test_the_binomial_chain_of_a_large_population_is_its_expectation():
    drawn = rates(initial=1e-3)
    course = sird.binomial_chain(drawn, 120, 10**12, np.random.default_rng(0))
    susceptible, infectious, expected = 1 - 1e-3, 1e-3, []
    for _ in range(120):
        expected.append(infectious)
        infected = susceptible * (1 - np.exp(-0.25 * infectious))
        susceptible, infectious = susceptible - infected, infectious + infected - infectious * (1 - np.exp(-0.1))
    np.testing.assert_allclose(course.infectious[0], expected, rtol=1e-3)


def test_gillespie_dies_out_as_often_as_the_branching_process():
    """One case causes no large epidemic with probability 1 / R0."""
    count, r0 = 600, 2.0
    many = sird.Rates(*(np.full(count, value) for value in (r0 * 0.1, 0.1, 0.98, 0)))
    course = sird.gillespie(many, 400, 300, np.random.default_rng(2))
    attack_rate = 1 - course.susceptible[:, -1]
    died_out = attack_rate < 0.2
    assert died_out.mean() == pytest.approx(1 / r0, abs=4 * np.sqrt(0.25 / count))
    assert attack_rate[~died_out].mean() == pytest.approx(0.7968, abs=0.03)


def test_gillespie_refuses_a_population_with_too_many_events():
    with pytest.raises(ValueError, match=r"population of 1,000,000 .* at most 20,000"):
        sird.gillespie(rates(), 10, 1_000_000, np.random.default_rng(0))


def test_a_range_of_r0_may_be_held_out():
    drawn = sird.draw_rates(2000, np.random.default_rng(0), r0=(3, 4))
    assert 3 <= (drawn.beta / drawn.mu).min() < 3.01
    assert 3.99 < (drawn.beta / drawn.mu).max() <= 4


@pytest.mark.parametrize("noise", [0, 0.2])
def test_reports_are_right_on_average_with_the_variance_of_the_negative_binomial(noise):
    share, population, count = 0.02, 10_000, 200_000
    reported = population * sird.observe(np.full((1, count), share), population, noise, np.random.default_rng(0))
    mean = share * population
    variance = mean + (noise * mean) ** 2
    assert reported.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / count))
    assert reported.var() == pytest.approx(variance, rel=0.02)
    np.testing.assert_allclose(reported, np.round(reported), atol=1e-9)


def test_reports_of_no_infection_are_zero():
    assert not sird.observe(np.zeros((2, 50)), 1000, 0.3, np.random.default_rng(0)).any()


def test_a_weekday_effect_moves_reports_within_the_week():
    reported = sird.observe(np.full((4000, 7), 0.02), 10**7, 0, np.random.default_rng(0), weekday=0.3)
    np.testing.assert_allclose(reported.mean(axis=1), 0.02, rtol=0.01)
    np.testing.assert_allclose(reported.mean(axis=0), 0.02, rtol=0.03)  # the first day of the week is random
    np.testing.assert_allclose(np.sort(reported[0]) / 0.02, [0.7, 0.7, 1, 1, 1, 1.3, 1.3], rtol=0.02)
