"""What the records of one study hold for one preset, what follows from it, and what was left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from ablations.records import Records
from ablations.report.numbers import count, listing
from ablations.statistics import (
    Target,
    area_under_curve,
    baseline_runs,
    baseline_target,
    effects,
    interactions,
    main_effects,
    mcnemar,
    one_factor_runs,
    time_to_target,
)

# Forecasts without a network, which a study may record beside its primary response and in its unit.
REFERENCES = {
    "persistence_error": "persistence",
    "log_linear_error": "log-linear extrapolation",
    "log_quadratic_error": "log-quadratic extrapolation",
    "arima_error": "ARIMA",
    "ets_error": "exponential smoothing",
    "seasonal_naive_error": "the season before",
    "flat_median_error": "the flat median of the hubs",
    "sir_fit_error": "a fitted SIR model",
    "oracle_error": "an oracle that knows the rates",
}
# Responses of every study whose records hold what they need; those not `told` stand in tables only.
STANDARD: tuple[dict[str, Any], ...] = (
    {"name": "epochs_to_target", "label": "epochs to the baseline's target", "unit": "", "told": True},
    {"name": "steps_to_target", "label": "steps to the baseline's target", "unit": "", "told": False},
    {"name": "seconds_to_target", "label": "training time to the baseline's target", "unit": "s", "told": False},
)
CHANGES_RESULTS = ("commit", "recurve", "torch", "python", "cpu", "gpu", "threads")  # fields of an environment


@dataclass(frozen=True)
class Evidence:
    """`runs`: a row per run of the preset and of the newest study version, whatever its status; `done`: those that
    count. `notes` name what is missing or was left out."""

    study: str
    preset: str
    declaration: dict[str, Any]  # with the standard responses that the records allow
    runs: pd.DataFrame
    effects: pd.DataFrame  # see statistics.effects
    curves: pd.DataFrame  # learning curves of done runs, with the columns of `runs`
    predictions: Callable[..., dict[str, np.ndarray]]  # of a key and names, see Records.predictions
    environment: dict[str, list[str]]  # every value of each field, over done runs
    main_effects: pd.DataFrame = field(default_factory=pd.DataFrame)  # see statistics.main_effects
    interactions: pd.DataFrame = field(default_factory=pd.DataFrame)  # see statistics.interactions
    answers: pd.DataFrame = field(default_factory=pd.DataFrame)  # McNemar's counts: factor, level, seed, examples ...
    target: Target | None = None  # of `epochs_to_target`
    test_examples: int = 0  # behind every accuracy; 0 where the records do not say
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
    def seeds(self) -> str:
        """`5 seeds`."""
        return count(self.done["seed"].nunique(), "seed") if len(self.done) else "no seeds"

    @property
    def references(self) -> dict[str, str]:
        return {column: name for column, name in REFERENCES.items() if column in self.done}

    @property
    def crossed(self) -> bool:
        """Whether factors were changed together, so that interactions can be seen."""
        return len(self.interactions) > 0


def gather(records: Records, study: str, preset: str) -> Evidence:
    """The study's runs under that preset; runs of other presets and older versions are counted, never mixed in.

    Raises FileNotFoundError if the study was never declared in these records.
    """
    declaration = records.declaration(study)
    runs, notes = _select(records.table(study), declaration, preset, partial(records.environment, study))
    predictions = partial(records.predictions, study)
    if runs.empty:
        return Evidence(study, preset, declaration, runs, pd.DataFrame(), pd.DataFrame(), predictions, {}, notes=notes)
    curves = records.curves(study, runs["key"])
    if len(curves):
        curves = curves.merge(runs[runs["status"] != "failed"], on="key")
    runs, target = _learning(runs, curves, declaration)
    declaration = declaration | {"responses": [*declaration["responses"], *_standard(runs, target)]}
    done = runs[runs["status"] == "done"]
    environment = _environment([records.environment(study, key) for key in done["key"]])
    crossed = interactions(runs, declaration, declaration["responses"][0]["name"])
    return Evidence(
        study,
        preset,
        declaration,
        runs,
        effects(runs, declaration),
        curves[curves["status"] == "done"].reset_index(drop=True) if len(curves) else curves,
        predictions,
        environment,
        main_effects(runs, declaration, declaration["responses"][0]["name"]) if len(crossed) else crossed,
        crossed,
        _answers(done, declaration, predictions),
        target,
        len(predictions(done["key"].iloc[0], ("label",)).get("label", ())) if len(done) else 0,
        [*notes, *_gaps(runs, declaration, len(crossed) > 0), *_mixed(environment), *_data(done, predictions)],
    )


def curve_measure(curves: pd.DataFrame) -> tuple[str, str]:
    """The learning curve's measure that reports speak of, and which way is better."""
    recorded = "validation_accuracy" in curves and curves["validation_accuracy"].notna().any()
    return ("validation_accuracy", "higher") if recorded else ("validation_loss", "lower")


def _select(
    table: pd.DataFrame,
    declaration: Mapping[str, Any],
    preset: str,
    environment: Callable[[str], Mapping[str, Any]],
) -> tuple[pd.DataFrame, list[str]]:
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
    outdated = _outdated(runs, factors, environment)
    if outdated.any():
        notes.append(
            f"{count(int(outdated.sum()), 'run')} on data that have changed since left out: a condition has later runs "
            "on other data."
        )
    runs = runs[~outdated]
    repeated = runs.duplicated([*factors, "seed"])
    if repeated.any():
        notes.append(f"{count(int(repeated.sum()), 'run')} repeated a condition and seed and left out.")
    runs = runs[~repeated]
    strange, by_design = _other_data(runs, declaration)
    if strange.any():
        notes.append(
            f"{count(int(strange.sum()), 'run')} saw other data than the baseline's run of the same seed, by the "
            "hashes in their records: such runs are not paired, and they are left out."
        )
    if by_design:
        notes.append(
            f"Under {listing(by_design)}, the data themselves are other than the baseline's: runs share its seeds "
            "alone. Differences hold, but pairing makes them no surer."
        )
    runs = runs[~strange]
    return runs.reset_index(drop=True), notes


def _outdated(runs: pd.DataFrame, factors: Sequence[str], environment: Callable[[str], Mapping[str, Any]]) -> pd.Series:
    """Runs on a version of the data after which some condition was run on another one."""
    outdated: set[str] = set()
    if runs["data_version"].nunique() == 1:
        return pd.Series(False, index=runs.index)
    for _, of_condition in runs.groupby(list(factors)):
        if of_condition["data_version"].nunique() > 1:
            dates = {key: environment(key).get("date", "") for key in of_condition["key"]}
            newest = of_condition["key"] == max(dates, key=dates.__getitem__)
            outdated |= set(of_condition["data_version"]) - set(of_condition["data_version"][newest])
    return runs["data_version"].isin(outdated)


def _other_data(runs: pd.DataFrame, declaration: Mapping[str, Any]) -> tuple[pd.Series, list[str]]:
    """Runs whose hash of the data split is not that of the baseline's run of their seed, although other runs of their
    condition have it; and the conditions of which no run has it, as `factor level`."""
    if "pairing_split" not in runs:
        return pd.Series(False, index=runs.index), []
    first = {f["name"]: f["levels"][0]["name"] for f in declaration["factors"] if f["name"] in runs}
    baseline = baseline_runs(runs, declaration).drop_duplicates("seed").set_index("seed")["pairing_split"].dropna()
    expected = runs["seed"].map(baseline)
    known = expected.notna() & runs["pairing_split"].notna()
    strange = known & (expected != runs["pairing_split"])
    condition = [
        " and ".join(f"{n} {level}" for (n, base), level in zip(first.items(), levels, strict=True) if level != base)
        for levels in zip(*(runs[n].astype(str).to_numpy(object) for n in first), strict=True)
    ]
    whole = strange.where(known).groupby(condition).transform(lambda of_condition: of_condition.dropna().all())
    designed = strange & whole.astype(bool)
    return strange & ~designed, sorted({text for text, is_so in zip(condition, designed, strict=True) if is_so})


def _learning(
    runs: pd.DataFrame, curves: pd.DataFrame, declaration: Mapping[str, Any]
) -> tuple[pd.DataFrame, Target | None]:
    """The runs with what their learning curves say, and the baseline's target, if a baseline run left a curve."""
    if curves.empty:
        return runs, None
    measure, better = curve_measure(curves)
    runs = runs.assign(area_under_curve=runs["key"].map(area_under_curve(curves, measure)))
    of_baseline = curves[curves["key"].isin(baseline_runs(runs, declaration).query("status == 'done'")["key"])]
    if of_baseline.empty:
        return runs, None
    target = baseline_target(of_baseline, measure, better)
    never = pd.Series(np.inf, index=runs["key"][runs["status"] == "diverged"])
    for clock in ("epoch", "step"):
        times = time_to_target(curves, target, clock).to_dict() | never.to_dict()
        runs[f"{clock}s_to_target"] = runs["key"].map(times)
    runs["epochs_watched"] = runs["key"].map(curves.groupby("key")["epoch"].max())
    if "seconds_per_step" in runs:
        seconds = runs["steps_to_target"] * runs["seconds_per_step"]
        runs["seconds_to_target"] = seconds.mask(np.isinf(runs["steps_to_target"]), np.inf)
    return runs, target


def _standard(runs: pd.DataFrame, target: Target | None) -> list[dict[str, Any]]:
    """Responses that the records allow beyond those that the study declares."""
    if target is None:
        return []
    unit = "%" if target.better == "higher" else ""
    name = target.measure.replace("_", " ")
    area = {"name": "area_under_curve", "label": f"mean {name} over training", "unit": unit, "told": False}
    times = [response | {"better": "lower", "measure": "median"} for response in STANDARD if response["name"] in runs]
    return [response | {"kind": "convergence"} for response in [area | {"better": target.better}, *times]]


def _answers(
    done: pd.DataFrame, declaration: Mapping[str, Any], predictions: Callable[..., dict[str, np.ndarray]]
) -> pd.DataFrame:
    """Per level and seed, the test examples that only the level or only the baseline got right, and McNemar's p.

    Empty for studies whose predictions hold no `label` and `predicted`.
    """
    names = ("label", "predicted")
    if done.empty or "label" not in predictions(done["key"].iloc[0], names):
        return pd.DataFrame()
    runs = one_factor_runs(done, declaration)
    right = {key: _right(predictions(key, names)) for key in runs["key"].unique()}
    rows = []
    for factor in declaration["factors"]:
        mine = runs[runs["factor"] == factor["name"]]
        is_baseline = mine["level"] == factor["levels"][0]["name"]
        baseline = mine[is_baseline].set_index("seed")["key"]
        for run in mine[~is_baseline & mine["seed"].isin(baseline.index)].itertuples():
            ours, theirs = right[run.key], right[baseline[run.seed]]
            if ours is not None and theirs is not None and ours.shape == theirs.shape:
                row = {"factor": factor["name"], "level": run.level, "seed": run.seed, "examples": len(ours)}
                rows.append(row | vars(mcnemar(ours, theirs)))
    return pd.DataFrame(rows)


def _right(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    return arrays["label"] == arrays["predicted"] if "label" in arrays and "predicted" in arrays else None


def _environment(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    fields = dict.fromkeys(name for environment in found for name in environment)
    values = {name: sorted({_text(environment.get(name)) for environment in found}) for name in fields}
    return {name: [seen[0], seen[-1]] if name == "date" and len(seen) > 2 else seen for name, seen in values.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _gaps(runs: pd.DataFrame, declaration: Mapping[str, Any], crossed: bool) -> list[str]:
    notes = []
    bad = runs[runs["status"] != "done"]
    if len(bad) == len(runs):
        notes.append("No run finished, so nothing can be concluded.")
    elif len(bad):
        parts = [count(n, f"{status} run") for status, n in bad["status"].value_counts().items()]
        notes.append(f"{listing(parts)}: counted beside the numbers, never part of them.")
    together = len(runs) - one_factor_runs(runs, declaration)["key"].nunique()
    if together and not crossed:
        unused = f"{count(together, 'run')} changed several factors at once, or to an undeclared level"
        notes.append(f"{unused}; this report does not use them.")
    done = runs[runs["status"] == "done"]
    if len(done) and done["seed"].nunique() == 1:
        notes.append("There is one seed only: differences are shown, but no interval and no verdict can be given.")
    if len(done) and not (one_factor_runs(done, declaration).groupby("factor")["level"].nunique() > 1).any():
        notes.append("Only one level of each factor was run, so there is nothing to compare.")
    return notes


def _data(done: pd.DataFrame, predictions: Callable[..., dict[str, np.ndarray]]) -> list[str]:
    """Which tests all runs share, and what was repaired in their data, where the records tell."""
    arrays = predictions(done["key"].iloc[0], ("tested", "repaired")) if len(done) else {}
    notes = []
    if "tested" in arrays:
        notes.append(
            f"Every run is tested on the same seasons, {listing(arrays['tested'].tolist())}, held out whole. Seeds "
            "differ in weights and in the order of training alone: what is sure over seeds is sure for these seasons, "
            "not yet for others."
        )
    if len(arrays.get("repaired", ())):
        notes.append(
            f"Repaired in the data, or left out of them, before any run: {'; '.join(arrays['repaired'].tolist())}."
        )
    return notes


def _mixed(environment: Mapping[str, list[str]]) -> list[str]:
    several = [name for name in CHANGES_RESULTS if len(environment.get(name, ())) > 1]
    if not several:
        return []
    return [
        f"The runs were not all made in one environment: they differ in {listing(several)}. What looks like an "
        "effect of a level may be one of the environment; its values stand at the end of the study."
    ]
