"""Records of two studies as training would leave them, with planted effects, written without torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ablations.records import Configuration, Records, Result, Status


def level(
    name: str, trying: str = "", because: str = "", expects: str = "better", margin: float = 0.0
) -> dict[str, Any]:
    hypothesis = {"trying": trying, "because": because, "expects": expects, "margin": margin} if trying else None
    return {"name": name, "settings": {}, "hypothesis": hypothesis}


def response(name: str, label: str, kind: str, better: str, unit: str = "") -> dict[str, str]:
    return {"name": name, "label": label, "kind": kind, "better": better, "unit": unit}


EPIDEMIC: dict[str, Any] = {
    "name": "epidemic",
    "title": "Forecasting an epidemic around its peak",
    "question": "Which design of a recurrent network forecasts the coming week of an epidemic best around its peak?",
    "version": "1",
    "figures": ["forecasts"],
    "factors": [
        {
            "name": "cell",
            "label": "Recurrent cell",
            "levels": [
                level("gru"),
                level("lstm", "an LSTM instead of a GRU", "a separate cell state keeps slow growth apart from noise",
                      "better", 0.02),
                level("rnn", "a plain RNN instead of a GRU", "without gates, gradients vanish over two weeks",
                      "worse", 0.02),
            ],
        },
        {
            "name": "history",
            "label": "Days of history",
            "levels": [
                level("14"),
                level("7", "one week of history instead of two",
                      "one week is too short to see the growth rate bend", "worse", 0.02),
                level("28", "four weeks of history instead of two",
                      "a longer past tells more of the growth rate", "better", 0.02),
            ],
        },
        {
            "name": "depth",
            "label": "Recurrent layers",
            "levels": [
                level("1"),
                level("2", "two recurrent layers instead of one",
                      "one layer can already hold the three states of the model", "equal", 0.02),
            ],
        },
        {
            "name": "dense",
            "label": "Dense layers before the output",
            "levels": [
                level("0"),
                level("1", "a dense layer before the output", "the way from state to forecast is not linear",
                      "better", 0.02),
            ],
        },
    ],
    "responses": [
        response("error", "Forecast error around the peak", "accuracy", "lower", "of peak height"),
        response("peak_day_error", "Error of the peak day", "accuracy", "lower", "days"),
        response("peak_height_error", "Error of the peak height", "accuracy", "lower", "%"),
        response("epochs_to_converge", "Epochs to converge", "convergence", "lower"),
        response("seconds_per_step", "Time per training step", "complexity", "lower", "s"),
        response("parameters", "Parameters", "complexity", "lower"),
    ],
}  # fmt: skip

VISION: dict[str, Any] = {
    "name": "vision",
    "title": "Recognising shifted digits",
    "question": "Do augmentation, depth and the head help a small convolutional network to recognise shifted digits?",
    "version": "2",
    "figures": ["shift_accuracy"],
    "factors": [
        {
            "name": "augmentation",
            "label": "Augmentation",
            "levels": [
                level("none"),
                level(
                    "shift", "random shifts of the training images", "digits are not always centred", "better", 0.005
                ),
                level("rotate", "random rotations", "people write at a slant", "better", 0.005),
                level("flip", "random flips", "a mirrored digit is another sign or none", "worse", 0.005),
            ],
        },
        {
            "name": "depth",
            "label": "Convolution blocks",
            "levels": [
                level("2"),
                level("1", "one block instead of two", "one block sees strokes but not shapes", "worse", 0.005),
                level("3", "three blocks instead of two", "more depth sees larger shapes", "better", 0.005),
            ],
        },
        {
            "name": "head",
            "label": "Head",
            "levels": [
                level("dense"),
                level("small", "a small dense head", "most weights of the dense head are not needed", "equal", 0.005),
                level("gap", "global average pooling", "position then no longer matters", "worse", 0.005),
            ],
        },
    ],
    "responses": [
        response("accuracy", "Test accuracy", "accuracy", "higher", "%"),
        response("shift_consistency", "Consistency under shifts", "accuracy", "higher", "%"),
        response("epochs_to_converge", "Epochs to converge", "convergence", "lower"),
        response("seconds_per_step", "Time per training step", "complexity", "lower", "s"),
        response("parameters", "Parameters", "complexity", "lower"),
    ],
}

# Added to the primary response of the baseline; what the report must find again.
PLANTED = {
    "epidemic": {("cell", "lstm"): -0.03, ("cell", "rnn"): 0.06, ("history", "7"): 0.05, ("history", "28"): 0.002},
    "vision": {
        ("augmentation", "shift"): 0.012, ("augmentation", "rotate"): 0.004, ("augmentation", "flip"): -0.02,
        ("depth", "1"): -0.015, ("head", "gap"): -0.01,
    },
}  # fmt: skip
INTERACTING = {"epidemic": {("cell", "lstm"), ("depth", "2")}, "vision": {("augmentation", "shift"), ("depth", "3")}}
INTERACTION = {"epidemic": -0.015, "vision": 0.008}  # beyond the sum of both changes alone
TEST_EXAMPLES = 400
BASELINE = {"epidemic": 0.12, "vision": 0.955}
NOISE = {"epidemic": 0.006, "vision": 0.002}  # of one run; a seed's own shift is three times that
PARAMETERS = {
    ("cell", "lstm"): 1.33, ("cell", "rnn"): 0.34, ("depth", "2"): 1.9, ("dense", "1"): 1.2, ("depth", "1"): 0.7,
    ("depth", "3"): 1.4, ("head", "small"): 0.5, ("head", "gap"): 0.2,
}  # fmt: skip


def conditions(declaration: dict[str, Any]) -> list[dict[str, str]]:
    """The baseline and every other level with all other factors at their baseline."""
    baseline = {factor["name"]: factor["levels"][0]["name"] for factor in declaration["factors"]}
    others = [
        baseline | {factor["name"]: chosen["name"]}
        for factor in declaration["factors"]
        for chosen in factor["levels"][1:]
    ]
    return [baseline, *others]


def configuration(
    declaration: dict[str, Any], levels: dict[str, str], seed: int, preset: str = "quick", version: str | None = None
) -> Configuration:
    return Configuration(
        declaration["name"], version or declaration["version"], "1", preset, {"preset": preset, **levels}, levels, seed
    )


def write_run(
    records: Records,
    declaration: dict[str, Any],
    levels: dict[str, str],
    seed: int,
    preset: str = "quick",
    version: str | None = None,
    status: Status = "done",
    message: str = "",
    details: bool = True,
    machine: int = 0,
    split: str = "",
    repaired: Sequence[str] = (),
    edition: int = 1,
) -> Configuration:
    """One run with its planted effect; `details` adds the learning curve, the predictions and the timing.

    Another `machine` has other noise and takes 0.6 times as long; another `split` is other data of the same seed;
    `repaired` is what was repaired in them, and `edition` tells how often they were published.
    """
    study = declaration["name"]
    config = replace(configuration(declaration, levels, seed, preset, version), data_version=str(edition))
    changed = set(levels.items()) - set(conditions(declaration)[0].items())
    rng = np.random.default_rng([seed, machine, *config.key.encode()])
    shared = np.random.default_rng(seed).normal(size=8)  # what runs of one seed have in common
    primary = BASELINE[study] + NOISE[study] * (3 * shared[0] + rng.normal())
    primary += sum(PLANTED[study].get(pair, 0.0) for pair in changed)
    primary += INTERACTION[study] * (INTERACTING[study] <= changed)
    factor = float(np.prod([PARAMETERS.get(pair, 1.0) for pair in changed]))
    epochs = float(round(12 * factor**0.3 + 2 * shared[1] + rng.normal()))
    responses = {"epochs_to_converge": epochs, "parameters": float(round(12_931 * factor))}
    if study == "epidemic":
        responses |= {
            "error": primary,
            "peak_day_error": 2 + 10 * primary + 0.3 * rng.normal(),
            "peak_height_error": primary / 2 + 0.01 * rng.normal(),
            "persistence_error": 0.212 + 0.01 * shared[2],
            "log_quadratic_error": 0.125 + 0.006 * shared[3],
        }
    else:
        responses |= {"accuracy": primary, "shift_consistency": primary - 0.1 + 0.004 * rng.normal()}
    environment = {
        "python": "3.11.9",
        "torch": "2.13.0",
        "cpu": f"synthetic processor {machine}",
        "threads": 2,
        "git": "0000000",
        "date": f"2026-01-{edition:02}T12:00:00+00:00",
    }
    failed = status != "done"
    curve = _curve(primary, epochs, rng) if details and not failed else None
    arrays = (_forecasts if study == "epidemic" else _shifts)(primary, seed, rng) if details and not failed else None
    if arrays is not None:
        arrays["repaired"] = np.array(repaired, dtype=str)
    pairing = {"split": f"{seed} {split}"}
    result = Result(status, {} if failed else responses, message, pairing)
    records.save(config, result, environment=environment, curve=curve, predictions=arrays)
    if details and not failed:
        seconds = 0.6**machine * 0.004 * factor**0.8 * np.exp(0.2 * shared[4] + 0.03 * rng.normal())
        records.save_timing(config, {"seconds_per_step": seconds})
    return config


def write_study(
    records: Records, declaration: dict[str, Any], seeds: int = 5, preset: str = "quick", **how: Any
) -> None:
    """All conditions with all seeds, done."""
    records.declare(declaration)
    for levels in conditions(declaration):
        for seed in range(seeds):
            write_run(records, declaration, levels, seed, preset, **how)


def write_crossed(records: Records, declaration: dict[str, Any], factors: list[str], seeds: int = 5) -> None:
    """A full factorial over those factors, the others at their baseline."""
    records.declare(declaration)
    baseline = conditions(declaration)[0]
    chosen = [factor for factor in declaration["factors"] if factor["name"] in factors]
    for levels in itertools.product(*([(f["name"], x["name"]) for x in f["levels"]] for f in chosen)):
        for seed in range(seeds):
            write_run(records, declaration, baseline | dict(levels), seed)


def _curve(primary: float, epochs: float, rng: np.random.Generator) -> pd.DataFrame:
    epoch = np.arange(1, 21)
    loss = 0.1 + abs(primary) * np.exp(-epoch / epochs * 3)
    frame = {
        "epoch": epoch,
        "step": epoch * 40,
        "seconds": epoch * 0.3,
        "train_loss": loss * 0.9,
        "validation_loss": loss * np.exp(0.03 * rng.normal(size=len(epoch))),
    }
    if primary > 0.5:
        frame["validation_accuracy"] = primary - 0.2 * np.exp(-epoch / epochs * 3) + 0.002 * rng.normal(size=len(epoch))
    return pd.DataFrame(frame)


def _forecasts(primary: float, seed: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    day, horizon, origin = np.arange(120), 7, np.array([-14, -7, 0, 7])
    peak = draw.uniform(45, 70, size=6)
    truth = 0.2 / np.cosh((day - peak[:, None]) / draw.uniform(9, 16, size=(6, 1))) ** 2
    observed = truth * np.exp(0.1 * draw.normal(size=truth.shape))
    peak_day = truth.argmax(axis=1)
    ahead = peak_day[:, None, None] + origin[:, None] + 1 + np.arange(horizon)
    forecast = np.take_along_axis(truth[:, None].repeat(len(origin), 1), ahead, axis=2)
    forecast = forecast * np.exp(primary * rng.normal(size=(6, len(origin), 1)) * np.arange(1, horizon + 1) / 4)
    return {
        "day": day, "truth": truth, "observed": observed, "origin": origin, "peak_day": peak_day, "forecast": forecast
    }  # fmt: skip


def _shifts(primary: float, seed: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    pixels = np.arange(0, 9)
    drop = (1 - primary) * 60
    accuracy = np.clip(primary - 0.006 * drop * pixels**1.5 / 4 + 0.004 * rng.normal(size=len(pixels)), 0.1, 1)
    difficulty = np.random.default_rng(seed).permuted((np.arange(TEST_EXAMPLES) + 0.5) / TEST_EXAMPLES)
    right = difficulty + 0.02 * rng.normal(size=TEST_EXAMPLES) < primary
    label = np.random.default_rng(seed).integers(10, size=TEST_EXAMPLES)
    predicted = np.where(right, label, (label + 1) % 10)
    return {"shift_pixels": pixels, "shift_accuracy": accuracy, "label": label, "predicted": predicted}
