"""Claims on every study there is: what it declares is complete and consistent."""

import json

import pytest

from ablations import studies

STUDIES = [studies.load(name) for name in studies.names()]


@pytest.fixture(params=STUDIES, ids=lambda study: study.name)
def study(request):
    return request.param


def test_baselines_carry_no_hypothesis_and_all_other_levels_do(study):
    for factor in study.factors:
        assert [level.hypothesis is None for level in factor.levels] == [True] + [False] * (len(factor.levels) - 1)


def test_hypotheses_complete_the_sentence_that_reports_make_of_them(study):
    for level in (level for factor in study.factors for level in factor.levels[1:]):
        for part in (level.hypothesis.trying, level.hypothesis.because):
            assert part[-1] not in ".,;"
            assert part[0].islower() or part.split()[0].isupper()
        assert level.hypothesis.margin > 0


def test_levels_of_a_factor_set_the_same_settings_to_different_values(study):
    for factor in study.factors:
        assert len({frozenset(level.settings) for level in factor.levels}) == 1
        assert len({str(list(level.settings.values())) for level in factor.levels}) == len(factor.levels)


def test_no_two_factors_set_the_same_thing(study):
    names = [name for factor in study.factors for name in factor.baseline.settings]
    assert len(names) == len(set(names))


def test_presets_have_the_three_sizes_and_only_name_existing_levels(study):
    assert {"smoke", "quick", "full"} <= set(study.presets)
    for preset in study.presets.values():
        for factor, levels in preset.levels.items():
            assert [study.factor(factor).level(level).name for level in levels] == list(levels)


def test_presets_leave_to_the_levels_what_factors_set(study):
    set_by_levels = {name for factor in study.factors for name in factor.baseline.settings}
    for preset in study.presets.values():
        assert not set_by_levels & set(preset.settings)


def test_every_preset_gives_the_same_settings_by_name(study):
    names = {frozenset(study.settings(preset, study.baseline)) for preset in study.presets}
    assert len(names) == 1


def test_responses_cover_accuracy_convergence_and_complexity_and_the_first_is_accuracy(study):
    assert study.responses[0].kind == "accuracy"
    assert {response.kind for response in study.responses} == {"accuracy", "convergence", "complexity"}
    assert {"epochs_to_converge", "seconds_per_step", "parameters"} <= {response.name for response in study.responses}


def test_the_declaration_is_plain_data(study):
    assert json.loads(json.dumps(study.declaration()))["name"] == study.name
