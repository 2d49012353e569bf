"""The vocabulary of a study: factors, levels, hypotheses, responses, and the conditions a design makes of them."""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")


class DesignError(ValueError):
    """A study, factor, level or preset that does not exist, with the ones that do."""


class DataError(DesignError):
    """Data that cannot serve: which, what is allowed, and what to do."""


Expected = Literal["better", "worse", "equal"]


@dataclass(frozen=True)
class Expectation:
    """What a hypothesis expects of one response beside the primary one."""

    response: str
    expects: Expected
    margin: float  # the smallest difference that would matter, in the response's unit; of a complexity, as a ratio


@dataclass(frozen=True)
class Hypothesis:
    """What we try and why, written before the run; `expects` and `margin` speak of the study's primary response.

    The report reads: "Let's try {trying}, because we might assume that {because}."
    """

    trying: str
    because: str
    expects: Expected
    margin: float  # the smallest difference that would matter, in the primary response's unit
    also: tuple[Expectation, ...] = ()


@dataclass(frozen=True)
class Level:
    """One value of a factor: what it sets in the configuration. The baseline level carries no hypothesis."""

    name: str
    settings: Mapping[str, Any]
    hypothesis: Hypothesis | None = None


@dataclass(frozen=True)
class Factor:
    """A design choice that a study varies; the first level is the baseline."""

    name: str
    label: str
    levels: tuple[Level, ...]

    @property
    def baseline(self) -> Level:
        return self.levels[0]

    def level(self, name: str) -> Level:
        """The level of that name; where every level sets one and the same setting to a number, any other number too,
        and where levels are named as what they set, a word and a number, any other number behind the word."""
        declared = {level.name: level for level in self.levels}
        if name not in declared and (like := self._strength(name)) is not None:
            return Level(name, dict.fromkeys(like.settings, name))
        numbers = self._numbers()
        if name not in declared and numbers and (number := _number(name, numbers)) is not None:
            same = [level for level in self.levels if number in level.settings.values()]
            return same[0] if same else Level(str(number), dict.fromkeys(self.baseline.settings, number))
        return find(name, declared, f"level of {self.name}", f", or {_allowed(numbers)}" if numbers else "")

    def _strength(self, name: str) -> Level | None:
        """A level that differs from `name` in the number behind its word only: `shift-3` for `shift-5`."""
        word, dash, number = name.partition("-")
        alike = [level for level in self.levels if level.name.partition("-")[0] == word and dash]
        named = [level for level in alike if list(level.settings.values()) == [level.name]]
        return named[0] if named and number.replace(".", "", 1).isdigit() else None

    def _numbers(self) -> list[int | float]:
        """The numbers to which all levels set one and the same setting; none if they set anything else."""
        values = [value for level in self.levels for value in level.settings.values()]
        alike = {frozenset(level.settings) for level in self.levels} == {frozenset(self.baseline.settings)}
        is_numeric = len(values) == len(self.levels) and {type(value) for value in values} <= {int, float}
        return values if alike and is_numeric else []


@dataclass(frozen=True)
class Response:
    """What is measured of a run: `kind` says which of the report's three sentences it belongs to."""

    name: str
    label: str
    kind: Literal["accuracy", "convergence", "complexity"]
    better: Literal["higher", "lower"]
    unit: str = ""  # "%" shows a fraction as per cent; any other text is appended to the number


@dataclass(frozen=True)
class Preset:
    """How much of a study is done: its settings, the number of seeds, and the levels left out for time."""

    settings: Mapping[str, Any]
    seeds: int
    levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # factor -> level names; absent means all


@dataclass(frozen=True)
class Condition:
    """One level of every factor, as pairs (factor, level) in the study's order."""

    levels: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return " ".join(f"{factor}={level}" for factor, level in self.levels)


class Predictor(Protocol):
    """A trained model as a function of inputs (N, ...), and by itself."""

    def __call__(self, inputs: torch.Tensor) -> Any: ...

    def module(self) -> torch.nn.Module:
        """A copy of the model, in evaluation mode."""


class Task(Protocol):
    """One run's data, model and measures: all that training asks of a study.

    Made from the resolved settings and the seed. The same seed gives the same draw and split of the data whatever
    the other settings, so that runs can be paired.
    """

    per_model: ClassVar[frozenset[str]]  # settings that change neither shapes nor the path of model and loss
    train_inputs: torch.Tensor  # (N, ...)
    train_targets: torch.Tensor  # (N, ...)

    @property
    def validation_inputs(self) -> torch.Tensor:
        """(M, ...)"""

    @property
    def validation_targets(self) -> torch.Tensor:
        """(M, ...)"""

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None: ...

    @staticmethod
    def data_version(settings: Mapping[str, Any]) -> str:
        """Another one whenever the data that the settings name change: a raised number, or a hash of their content."""

    @property
    def split(self) -> Sequence[np.ndarray | torch.Tensor]:
        """Arrays that are equal in two runs if, and only if, their draw and split of the data is."""

    def model(self) -> torch.nn.Module:
        """A fresh model; its weights come from torch's global generator, which the caller has seeded."""

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A batch of training inputs (B, ...) as the model shall see it."""

    def loss(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of what the model makes of a batch, a scalar; runs under `torch.vmap`."""

    def validate(self, outputs: Any) -> dict[str, float]:
        """What the learning curve holds beside the loss, of what the model makes of `validation_inputs`."""

    def evaluate(self, predict: Predictor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The study's own responses on the test part, and the arrays that its figures need."""


@dataclass(frozen=True)
class Study:
    """A question, the factors that might answer it and the responses that will; `task` names how it is trained."""

    name: str
    title: str
    question: str
    version: str  # raise it when code that changes a result changes
    factors: tuple[Factor, ...]
    responses: tuple[Response, ...]  # the first is the primary response
    presets: Mapping[str, Preset]
    task: type[Task]
    figures: tuple[str, ...] = ()  # report figures by name, or its own as module:function
    design: Callable[[Study, Mapping[str, Sequence[str]]], list[Condition]] | None = None  # if not one factor at a time

    def __post_init__(self) -> None:
        owner: dict[str, str] = {}
        for factor in self.factors:
            for setting in {setting for level in factor.levels for setting in level.settings}:
                if owner.setdefault(setting, factor.name) != factor.name:
                    both = f"{owner[setting]} and {factor.name}"
                    raise DesignError(
                        f"study {self.name}: {both} both set {setting!r}; a setting belongs to one factor"
                    )
        responses = {response.name: response for response in self.responses[1:]}
        for level in (level for factor in self.factors for level in factor.levels):
            for expectation in level.hypothesis.also if level.hypothesis else ():
                find(expectation.response, responses, f"response of study {self.name} beside its primary one")

    def factor(self, name: str) -> Factor:
        return find(name, {factor.name: factor for factor in self.factors}, f"factor of study {self.name}")

    def preset(self, name: str) -> Preset:
        """The preset called so, or one with other settings: `quick data=cifar10 epochs=20`, quoted as in a shell."""
        try:
            base, *changes = shlex.split(name)
        except ValueError as error:
            raise DesignError(f"preset {name!r} cannot be read: {error}") from error
        preset = find(base, dict(self.presets), f"preset of study {self.name}")
        set_by_levels = {setting: f.name for f in self.factors for setting in f.baseline.settings}
        settings = dict(preset.settings)
        for change in changes:
            setting, _, text = change.partition("=")
            if setting in set_by_levels:
                raise DesignError(f"{setting!r} is what the factor {set_by_levels[setting]} varies; name its levels")
            find(setting, settings, f"setting of preset {base}")
            settings[setting] = _converted(setting, text, settings[setting])
        return replace(preset, settings=settings)

    @property
    def baseline(self) -> Condition:
        return Condition(tuple((factor.name, factor.baseline.name) for factor in self.factors))

    def settings(self, preset: str, condition: Condition) -> dict[str, Any]:
        """The preset's settings overlaid by those of the condition's levels."""
        settings = dict(self.preset(preset).settings)
        for factor, level in condition.levels:
            settings.update(self.factor(factor).level(level).settings)
        return settings

    def extended(self, conditions: Iterable[Condition]) -> Study:
        """The study with the levels that the conditions set and it does not declare."""
        chosen: dict[str, dict[str, None]] = {factor.name: {} for factor in self.factors}
        for condition in conditions:
            for name, level in condition.levels:
                chosen[name][level] = None
        factors = []
        for factor in self.factors:
            declared = {level.name for level in factor.levels}
            new = tuple(factor.level(level) for level in chosen[factor.name] if level not in declared)
            factors.append(replace(factor, levels=factor.levels + new))
        return replace(self, factors=tuple(factors))

    def declaration(self) -> dict[str, Any]:
        """The study as plain data, for records: what a report needs to know without importing the study."""
        plain = {name: getattr(self, name) for name in ("name", "title", "question", "version", "figures")}
        return plain | {
            "factors": [asdict(factor) for factor in self.factors],
            "responses": [asdict(response) for response in self.responses],
        }


def one_factor_at_a_time(study: Study, chosen: Mapping[str, Sequence[str]]) -> list[Condition]:
    """The baseline, then each other chosen level with all other factors at their baseline."""
    conditions = [study.baseline]
    for factor in study.factors:
        for name in chosen.get(factor.name, ()):
            levels = dict(study.baseline.levels) | {factor.name: factor.level(name).name}
            condition = Condition(tuple(levels.items()))
            if condition not in conditions:
                conditions.append(condition)
    return conditions


def full_factorial(study: Study, chosen: Mapping[str, Sequence[str]]) -> list[Condition]:
    """Every combination of the chosen levels and the baselines; the plain baseline comes first."""
    levels = [
        dict.fromkeys([factor.baseline.name, *(factor.level(name).name for name in chosen.get(factor.name, ()))])
        for factor in study.factors
    ]
    names = [factor.name for factor in study.factors]
    return [Condition(tuple(zip(names, combination, strict=True))) for combination in product(*levels)]


def all_pairs(study: Study, chosen: Mapping[str, Sequence[str]]) -> list[Condition]:
    """For every two of the chosen factors, every combination of their levels: what shows two-way interactions."""
    conditions = [study.baseline]
    for one, other in combinations(chosen, 2):
        conditions += full_factorial(study, {one: chosen[one], other: chosen[other]})
    return list(dict.fromkeys(conditions))


def listed(study: Study, words: Sequence[str]) -> list[Condition]:
    """The baseline, then a condition per word: `cell=lstm+depth=2` sets these levels and leaves the others."""
    conditions = [study.baseline]
    for word in words:
        chosen = choose_levels(study, word.split("+"))
        for name, levels in chosen.items():
            if len(levels) > 1:
                raise DesignError(f"{word!r} names {len(levels)} levels of {name}; a listed condition has one")
        levels_of = dict(study.baseline.levels) | {name: levels[0] for name, levels in chosen.items()}
        conditions.append(Condition(tuple(levels_of.items())))
    return list(dict.fromkeys(conditions))


def preset_levels(study: Study, preset: str) -> dict[str, tuple[str, ...]]:
    """Per factor, the levels that the preset allows."""
    allowed = study.preset(preset).levels
    return {f.name: tuple(allowed.get(f.name, tuple(level.name for level in f.levels))) for f in study.factors}


def choose_levels(study: Study, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Levels per factor from words like `cell=lstm,gru`."""
    chosen: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, equals, levels = word.partition("=")
        factor = study.factor(name)
        if not equals or not levels:
            allowed_names = ",".join(level.name for level in factor.levels)
            raise DesignError(f"{word!r} names no level; write {name}={allowed_names} or some of these levels")
        named = (factor.level(level).name for level in levels.split(","))
        chosen[name] = tuple(dict.fromkeys([*chosen.get(name, ()), *named]))
    return chosen


def _converted(setting: str, text: str, present: Any) -> Any:
    """The text as a value of the kind that the setting has at present."""
    kind = type(present)
    if kind not in (int, float, str):
        raise DesignError(f"{setting} is set by presets only; to change it, add a preset to the study")
    value = text if kind is str else _number(text, [present])
    if value is None:
        raise DesignError(f"{text!r} is not a value of {setting}; allowed: {_allowed([present])}")
    return value


def _number(text: str, known: Sequence[int | float]) -> int | float | None:
    """The number that the text stands for, if it is one of those that `_allowed` by the known ones."""
    whole, least = _kind(known)
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= least else None


def _allowed(known: Sequence[int | float]) -> str:
    """Which numbers may stand beside the known ones: `any whole number above 0`."""
    whole, least = _kind(known)
    limit = " above 0" if least == 1 else " that is not negative" if least == 0 else ""
    return f"any {'whole ' if whole else ''}number{limit}"


def _kind(known: Sequence[int | float]) -> tuple[bool, float]:
    """Whether numbers like these are whole, and the least that there may be."""
    whole = all(isinstance(number, int) for number in known)
    return whole, -math.inf if min(known) < 0 else 1 if whole and min(known) > 0 else 0


def find(name: str, known: Mapping[str, T], what: str, also: str = "") -> T:
    """The thing of that name; `DesignError` with the nearest and all allowed names if there is none."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DesignError(f"{name!r} is not a {what}.{hint} Allowed: {', '.join(known)}{also}")
