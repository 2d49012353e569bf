"""Claims on the vocabulary: what a design makes of factors and levels, and what it says of unknown ones."""

import pytest
from planted import DEFAULTS, STUDY

from ablations.design import DesignError, choose_levels, one_factor_at_a_time


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


def test_words_choose_levels_and_other_factors_stay_at_their_baseline():
    assert choose_levels(STUDY, "quick", ["width=eight,four"]) == {"width": ("eight", "four")}


def test_without_words_a_preset_may_leave_levels_out():
    chosen = choose_levels(STUDY, "quick", [])
    assert chosen == {"width": ("four", "eight"), "jitter": ("off", "on"), "trouble": ("none",)}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cell=gru", "'cell' is not a factor of study planted. Allowed: width, jitter, trouble"),
        ("witdh=four", "Did you mean 'width'"),
        ("width=for", "'for' is not a level of width. Did you mean 'four'.* Allowed: four, eight"),
        ("width", "'width' names no level; write width=four,eight"),
    ],
)
def test_an_unknown_word_is_named_with_what_is_allowed(word, message):
    with pytest.raises(DesignError, match=message):
        choose_levels(STUDY, "quick", [word])


def test_an_unknown_preset_is_named_with_what_is_allowed():
    with pytest.raises(DesignError, match=r"'fll' is not a preset of study planted.*Allowed: quick, smoke"):
        STUDY.preset("fll")


def test_a_declaration_holds_what_a_report_needs():
    declaration = STUDY.declaration()
    level = declaration["factors"][0]["levels"][1]
    assert level["hypothesis"]["trying"] == "something else"
    assert declaration["responses"][0]["name"] == "error"
    assert "task" not in declaration
