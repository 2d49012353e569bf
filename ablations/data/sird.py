"""Simulated epidemics: the SIR model with deaths, deterministic and stochastic, and what of it is reported.

`ode` is the differential equation and `daily_map` Euler's steps of a day, which peak elsewhere. `binomial_chain` and
`gillespie` are stochastic: the chain in steps of a day for any population, Gillespie's event by event for small ones.
All amounts are shares of the population, so that its size N is 1:

    new infections   beta S I / N        beta: infection rate per day
    removals         mu I                mu: removal rate per day
    recoveries       nu mu I             nu: share of the removed that recover; the others die
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

LARGEST_GILLESPIE = 20_000


@dataclass(frozen=True)
class Rates:
    """Parameters of n epidemics, each (n,); `initial` is the share of the population that is infectious on day 0."""

    beta: np.ndarray
    mu: np.ndarray
    nu: np.ndarray
    initial: np.ndarray

    def __len__(self) -> int:
        return len(self.beta)

    def __getitem__(self, rows: slice | np.ndarray) -> Rates:
        return Rates(*(getattr(self, field.name)[rows] for field in fields(self)))


class Course(NamedTuple):
    """Shares of the population on days 0, 1, ..., each (n, days)."""

    susceptible: np.ndarray
    infectious: np.ndarray
    recovered: np.ndarray
    dead: np.ndarray


def daily_map(rates: Rates, days: int) -> Course:
    """The model in steps of one day (Euler's method): often simulated, though it peaks elsewhere than the ODE."""
    state = _initial_state(rates)
    states = [state]
    for _ in range(days - 1):
        state = state + _daily_change(state, rates)
        states.append(state)
    return Course(*np.moveaxis(np.array(states), 0, -1))  # to copy them into another order would take as long again


def ode(rates: Rates, days: int) -> Course:
    """The differential equation, integrated to a relative error of 1e-9."""
    shape = (4, len(rates))
    solution = solve_ivp(
        lambda _, flat: _daily_change(flat.reshape(shape), rates).ravel(),
        (0, days - 1),
        _initial_state(rates).ravel(),
        t_eval=np.arange(days),
        rtol=1e-9,
        atol=1e-12,
    )
    return Course(*solution.y.reshape(*shape, days))


def binomial_chain(rates: Rates, days: int, population: int, generator: np.random.Generator) -> Course:
    """Each day, each susceptible is infected with probability 1 - exp(-beta I / N) and each infectious person removed
    with probability 1 - exp(-mu) (the Euler-binomial scheme of Breto et al. 2009)."""
    susceptible, infectious, recovered, dead = np.rint(population * _initial_state(rates)).astype(np.int64)
    removal = -np.expm1(-rates.mu)
    states = [(susceptible, infectious, recovered, dead)]
    for _ in range(days - 1):
        infected = generator.binomial(susceptible, -np.expm1(-rates.beta * infectious / population))
        removed = generator.binomial(infectious, removal)
        recoveries = generator.binomial(removed, rates.nu)
        susceptible, infectious = susceptible - infected, infectious + infected - removed
        recovered, dead = recovered + recoveries, dead + removed - recoveries
        states.append((susceptible, infectious, recovered, dead))
    return Course(*np.moveaxis(np.array(states), 0, -1) / population)


def gillespie(rates: Rates, days: int, population: int, generator: np.random.Generator) -> Course:
    """Every infection and removal at its own random time (Gillespie 1977), looked at once a day.

    At least one person is infectious at first. Raises `ValueError` for a population above `LARGEST_GILLESPIE`.
    """
    if population > LARGEST_GILLESPIE:
        raise ValueError(
            f"a population of {population:,} has too many events for Gillespie's algorithm; at most "
            f"{LARGEST_GILLESPIE:,} are allowed, and binomial_chain serves larger ones"
        )
    counts = np.stack([_events(rates[slice(i, i + 1)], days, population, generator) for i in range(len(rates))], axis=1)
    return Course(*counts / population)


def draw_rates(count: int, generator: np.random.Generator, r0: tuple[float, float] = (1.5, 4.0)) -> Rates:
    """Random epidemics: R0 = beta / mu in a range, 4 to 14 days infectious, 0.1 to 10 % of the removed die."""
    mu = 1 / generator.uniform(4, 14, count)
    return Rates(
        beta=mu * generator.uniform(*r0, count),
        mu=mu,
        nu=generator.uniform(0.9, 0.999, count),
        initial=10 ** generator.uniform(-5, -3, count),
    )


def observe(
    share: np.ndarray, population: int, noise: float, generator: np.random.Generator, weekday: float = 0.0
) -> np.ndarray:
    """The share (n, days) as reported: a negative binomial count among `population`, whose mean m is the true one and
    whose variance is m + (noise m)^2; Poisson without noise.

    With a weekday effect, a share `weekday` of what belongs to two days of the week is reported on the two after them;
    on which day of the week an epidemic begins is random.
    """
    first = generator.integers(7, size=(len(share), 1))
    factor = generator.gamma(1 / noise**2, noise**2, share.shape) if noise else np.ones(share.shape)
    mean = population * share * factor * weekly(weekday)[(first + np.arange(share.shape[1])) % 7]
    return generator.poisson(mean) / population


def weekly(effect: float) -> np.ndarray:
    """Factors of the seven days of a week, with mean 1: two low days, then two high ones."""
    return 1 + effect * np.array([0, 0, 0, -1, -1, 1, 1])


def _events(rates: Rates, days: int, population: int, generator: np.random.Generator) -> np.ndarray:
    """Counts (4, days) of one epidemic."""
    beta, mu, nu = (float(rate[0]) for rate in (rates.beta, rates.mu, rates.nu))
    infectious = max(1, round(population * float(rates.initial[0])))
    susceptible, recovered, dead, time, day = population - infectious, 0, 0, 0.0, 0
    counts = np.empty((4, days), dtype=np.int64)
    while day < days:
        infection, removal = beta * susceptible * infectious / population, mu * infectious
        total = infection + removal
        time = time + generator.exponential(1 / total) if total else np.inf
        while day < days and day < time:
            counts[:, day] = susceptible, infectious, recovered, dead
            day += 1
        if generator.random() * total < infection:
            susceptible, infectious = susceptible - 1, infectious + 1
        else:
            infectious -= 1
            recovers = generator.random() < nu
            recovered, dead = recovered + recovers, dead + (not recovers)
    return counts


def _initial_state(rates: Rates) -> np.ndarray:
    zero = np.zeros(len(rates))
    return np.stack([1 - rates.initial, rates.initial, zero, zero])


def _daily_change(state: np.ndarray, rates: Rates) -> np.ndarray:
    """Change per day of S, I, R and D; state (4, n)."""
    susceptible, infectious, _, _ = state
    infections = rates.beta * susceptible * infectious
    removals = rates.mu * infectious
    return np.stack([-infections, infections - removals, rates.nu * removals, (1 - rates.nu) * removals])
