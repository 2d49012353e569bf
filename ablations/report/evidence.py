"""What the records of one study hold for one preset, what follows from it, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ablations.records import Records
from ablations.report.numbers import count, listing
from ablations.statistics import effects, one_factor_runs

# Forecasts without a network, which a study may record beside its primary response and in its unit.
REFERENCES = {
    "persistence_error": "persistence",
    "log_linear_error": "log-linear extrapolation",
    "log_quadratic_error": "log-quadratic extrapolation",
}


@dataclass(frozen=True)
class Evidence:
    """`runs`: a row per run of the preset and of the newest study version, whatever its status; `done`: those that
    count. `notes` name what is missing or was left out."""

    study: str
    preset: str
    declaration: dict[str, Any]
    runs: pd.DataFrame
    effects: pd.DataFrame  # see statistics.effects
    curves: pd.DataFrame  # learning curves of done runs, with the columns of `runs`
    predictions: dict[str, dict[str, np.ndarray]]  # by key, of done runs
    environment: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def done(self) -> pd.DataFrame:
        return self.runs[self.runs["status"] == "done"] if len(self.runs) else self.runs

    @property
    def primary(self) -> dict[str, Any]:
        return self.declaration["responses"][0]

    @property
    def unfinished(self) -> pd.DataFrame:
        return self.runs[self.runs["status"] != "done"] if len(self.runs) else self.runs

    @property
    def references(self) -> dict[str, str]:
        return {column: name for column, name in REFERENCES.items() if column in self.done}


def gather(records: Records, study: str, preset: str) -> Evidence:
    """The study's runs under that preset; runs of other presets and older versions are counted, never mixed in.

    Raises FileNotFoundError if the study was never declared in these records.
    """
    declaration = records.declaration(study)
    table = records.table(study)
    runs, notes = _select(table, declaration, preset)
    done = runs[runs["status"] == "done"] if len(runs) else runs
    found = effects(runs, declaration) if len(runs) else pd.DataFrame()
    curves = records.curves(study) if len(done) else pd.DataFrame()
    if len(curves):
        curves = curves.merge(done, on="key")
    predictions = {key: records.predictions(study, key) for key in done["key"]} if len(done) else {}
    environment = records.environment(study, done["key"].iloc[0]) if len(done) else {}
    return Evidence(study, preset, declaration, runs, found, curves, predictions, environment, notes)


def _select(table: pd.DataFrame, declaration: Mapping[str, Any], preset: str) -> tuple[pd.DataFrame, list[str]]:
    if table.empty:
        return table, ["There are no runs yet."]
    notes = []
    others = table.loc[table["preset"] != preset, "preset"].value_counts()
    if len(others):
        listed = listing([f"{count(n, 'run')} of preset {name}" for name, n in others.items()])
        notes.append(f"{listed} exist and are not mixed in: this report is on preset {preset} alone.")
    runs = table[table["preset"] == preset]
    old = runs["study_version"] != declaration["version"]
    if old.any():
        left_out = f"{count(int(old.sum()), 'run')} of another study version left out"
        notes.append(f"{left_out}; version {declaration['version']}, the newest, is used.")
    runs = runs[~old]
    if runs.empty:
        return runs, [f"There are no runs of preset {preset}.", *notes]
    factors = [factor["name"] for factor in declaration["factors"] if factor["name"] in runs]
    repeated = runs.duplicated([*factors, "seed"])
    if repeated.any():
        notes.append(f"{count(int(repeated.sum()), 'run')} repeated a condition and seed and left out.")
    runs = runs[~repeated]
    crossed = len(runs) - one_factor_runs(runs, declaration)["key"].nunique()
    if crossed:
        unused = f"{count(crossed, 'run')} changed several factors at once, or to an undeclared level"
        notes.append(f"{unused}; this report does not use them.")
    return runs.reset_index(drop=True), [*notes, *_gaps(runs, declaration)]


def _gaps(runs: pd.DataFrame, declaration: Mapping[str, Any]) -> list[str]:
    notes = []
    bad = runs[runs["status"] != "done"]
    if len(bad) == len(runs):
        notes.append("No run finished, so nothing can be concluded.")
    elif len(bad):
        parts = [count(n, f"{status} run") for status, n in bad["status"].value_counts().items()]
        notes.append(f"{listing(parts)}: counted beside the numbers, never part of them.")
    done = runs[runs["status"] == "done"]
    if len(done) and done["seed"].nunique() == 1:
        notes.append("There is one seed only: differences are shown, but no interval and no verdict can be given.")
    if len(done) and not (one_factor_runs(done, declaration).groupby("factor")["level"].nunique() > 1).any():
        notes.append("Only one level of each factor was run, so there is nothing to compare.")
    return notes
