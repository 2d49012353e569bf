"""Claims on the vocabulary: what a design makes of factors and levels, and what it says of unknown ones."""

from dataclasses import replace

import pytest
from planted import DEFAULTS, STUDY

from ablations.design import (
    DesignError,
    Expectation,
    Factor,
    Hypothesis,
    Level,
    Preset,
    Response,
    all_pairs,
    choose_levels,
    full_factorial,
    listed,
    one_factor_at_a_time,
    preset_levels,
)


def test_one_factor_at_a_time_varies_one_factor_and_keeps_the_others_at_their_baseline():
    conditions = one_factor_at_a_time(STUDY, {"width": ("four", "eight"), "jitter": ("on",)})
    assert [str(condition) for condition in conditions] == [
        "width=four jitter=off trouble=none",
        "width=eight jitter=off trouble=none",
        "width=four jitter=on trouble=none",
    ]


def test_the_baseline_is_always_a_condition():
    assert one_factor_at_a_time(STUDY, {"width": ("eight",)})[0] == STUDY.baseline


def test_settings_are_the_presets_overlaid_by_the_levels():
    _, wide = one_factor_at_a_time(STUDY, {"width": ("eight",)})
    assert STUDY.settings("quick", wide) == DEFAULTS | {"width": 8}


def test_a_preset_is_taken_with_other_settings():
    preset = STUDY.preset("quick batch_size=7 learning_rate=0.5")
    assert dict(preset.settings) == DEFAULTS | {"batch_size": 7, "learning_rate": 0.5}
    assert preset.seeds == STUDY.preset("quick").seeds


def test_a_setting_with_spaces_is_quoted():
    spaced = replace(STUDY, presets={"quick": Preset(DEFAULTS | {"value": ""}, seeds=2)})
    assert spaced.preset("quick 'value=% WEIGHTED ILI'").settings["value"] == "% WEIGHTED ILI"
    with pytest.raises(DesignError, match="No closing quotation"):
        spaced.preset("quick 'value=")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batchsize=7", "'batchsize' is not a setting of preset quick. Did you mean 'batch_size'?"),
        ("batch_size=many", "'many' is not a value of batch_size; allowed: any whole number above 0"),
        ("batch_size=0", "'0' is not a value of batch_size; allowed: any whole number above 0"),
        ("epochs=0", "'0' is not a value of epochs; allowed: any whole number above 0"),
        ("learning_rate=-1", "'-1' is not a value of learning_rate; allowed: any number that is not negative"),
        ("jitter=nan", "is what the factor jitter varies"),
        ("clip=inf", "'inf' is not a value of clip; allowed: any number that is not negative"),
        ("width=8", "'width' is what the factor width varies"),
    ],
)
def test_a_setting_that_cannot_be_changed_says_why(change, message):
    with pytest.raises(DesignError, match=message):
        STUDY.preset(f"quick {change}")


def test_words_choose_levels():
    assert choose_levels(STUDY, ["width=eight,four"]) == {"width": ("eight", "four")}


def test_words_of_one_factor_add_up():
    assert choose_levels(STUDY, ["width=eight", "width=6", "width=eight"]) == {"width": ("eight", "6")}


def test_a_preset_may_leave_levels_out():
    chosen = preset_levels(STUDY, "quick")
    assert chosen == {"width": ("four", "eight"), "jitter": ("off", "on"), "trouble": ("none",)}


def names(conditions):
    return [str(condition).replace(" trouble=none", "") for condition in conditions]


def test_a_full_factorial_has_every_combination_with_the_baselines():
    conditions = full_factorial(STUDY, {"width": ("eight",), "jitter": ("off", "on")})
    assert names(conditions) == [
        "width=four jitter=off",
        "width=four jitter=on",
        "width=eight jitter=off",
        "width=eight jitter=on",
    ]


def test_all_pairs_cross_any_two_factors_and_never_three():
    conditions = all_pairs(STUDY, {"width": ("eight",), "jitter": ("on",), "trouble": ("slow",)})
    changed = [sum(a != b for a, b in zip(c.levels, STUDY.baseline.levels, strict=True)) for c in conditions]
    assert sorted(changed) == [0, 1, 1, 1, 2, 2, 2]


def test_listed_conditions_set_the_levels_they_name():
    conditions = listed(STUDY, ["width=eight+jitter=on", "jitter=on", "jitter=on"])
    assert names(conditions) == ["width=four jitter=off", "width=eight jitter=on", "width=four jitter=on"]


NUMBERS = Factor("rate", "rate", (Level("slow", {"rate": 0.1}), Level("fast", {"rate": 1.0})))


def test_where_levels_are_numbers_any_other_may_be_set():
    assert STUDY.factor("width").level("4") == STUDY.factor("width").baseline
    assert STUDY.factor("width").level("6") == Level("6", {"width": 6})
    assert NUMBERS.level("0.30") == Level("0.3", {"rate": 0.3})
    assert choose_levels(STUDY, ["width=6,eight"]) == {"width": ("6", "eight")}


@pytest.mark.parametrize(
    ("factor", "name"),
    [
        *((STUDY.factors[0], name) for name in ("6.5", "0", "-3")),
        (STUDY.factors[2], "6"),
        *((NUMBERS, name) for name in ("rapid", "-0.1", "nan", "inf")),
    ],
)
def test_a_level_that_is_no_such_number_is_refused(factor, name):
    with pytest.raises(DesignError, match=f"{name!r} is not a level of {factor.name}"):
        factor.level(name)


def test_levels_set_by_hand_are_declared_with_the_studys_own():
    conditions = one_factor_at_a_time(STUDY, {"width": ("6",)})
    extended = STUDY.extended(conditions)
    assert [level.name for level in extended.factor("width").levels] == ["four", "eight", "6"]
    assert extended.factors[1:] == STUDY.factors[1:]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("width=four,eight", "names 2 levels of width; a listed condition has one"),
        ("width=four+width=eight", "names 2 levels of width; a listed condition has one"),
        ("width=eight+jitter", "names no level"),
    ],
)
def test_a_listed_condition_that_is_none_is_refused(word, message):
    with pytest.raises(DesignError, match=message):
        listed(STUDY, [word])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cell=gru", "'cell' is not a factor of study planted. Allowed: width, jitter, trouble"),
        ("witdh=four", "Did you mean 'width'"),
        ("width=for", "'for' is not a level of width. Did you mean 'four'.* Allowed: four, eight, or any whole number"),
        ("width=1e3", "'1e3' is not a level of width.* or any whole number above 0"),
        ("width", "'width' names no level; write width=four,eight"),
    ],
)
def test_an_unknown_word_is_named_with_what_is_allowed(word, message):
    with pytest.raises(DesignError, match=message):
        choose_levels(STUDY, [word])


def test_a_hypothesis_on_an_unknown_response_is_refused():
    stated = Hypothesis("it", "why not", "better", 0.1, also=(Expectation("scroe", "better", 0.1),))
    factor = Factor("choice", "Choice", (Level("a", {"x": 1}), Level("b", {"x": 2}, stated)))
    responses = tuple(Response(name, name, "accuracy", "higher") for name in ("primary", "score"))
    with pytest.raises(DesignError, match=r"'scroe' is not a response of study planted.* Did you mean 'score'"):
        replace(STUDY, factors=(factor,), responses=responses)


def test_an_unknown_preset_is_named_with_what_is_allowed():
    with pytest.raises(DesignError, match=r"'fll' is not a preset of study planted.*Allowed: quick, smoke"):
        STUDY.preset("fll")


def test_a_declaration_holds_what_a_report_needs():
    declaration = STUDY.declaration()
    level = declaration["factors"][0]["levels"][1]
    assert level["hypothesis"]["trying"] == "something else"
    assert declaration["responses"][0]["name"] == "error"
    assert "task" not in declaration
