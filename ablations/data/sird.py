"""Simulated epidemics: the SIR model with deaths, as a daily map and as the differential equation it approximates.

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
    return Course(*np.stack(states, axis=-1))


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


def draw_rates(count: int, generator: np.random.Generator) -> Rates:
    """Random epidemics: R0 = beta / mu from 1.5 to 4, 4 to 14 days infectious, 0.1 to 10 % of the removed die."""
    mu = 1 / generator.uniform(4, 14, count)
    return Rates(
        beta=mu * generator.uniform(1.5, 4, count),
        mu=mu,
        nu=generator.uniform(0.9, 0.999, count),
        initial=10 ** generator.uniform(-5, -3, count),
    )


def observe(share: np.ndarray, population: int, noise: float, generator: np.random.Generator) -> np.ndarray:
    """The share as reported: a count among `population`, its expectation off by a factor with log-deviation `noise`.

    The factor's mean is 1, so that reports are right on average.
    """
    factor = np.exp(noise * generator.standard_normal(share.shape) - noise**2 / 2)
    return generator.poisson(population * share * factor) / population


def _initial_state(rates: Rates) -> np.ndarray:
    zero = np.zeros(len(rates))
    return np.stack([1 - rates.initial, rates.initial, zero, zero])


def _daily_change(state: np.ndarray, rates: Rates) -> np.ndarray:
    """Change per day of S, I, R and D; state (4, n)."""
    susceptible, infectious, _, _ = state
    infections = rates.beta * susceptible * infectious
    removals = rates.mu * infectious
    return np.stack([-infections, infections - removals, rates.nu * removals, (1 - rates.nu) * removals])
