"""Claims on the study of convolution algorithms: it crosses them with geometries, and its digits are those it says."""

import pytest
import torch

from ablations.plan import plan_study
from ablations.records import Records
from ablations.studies import load
from ablations.studies.convolution import ConvolutionTask, _digits

STUDY = load("convolution")


def test_every_algorithm_meets_every_geometry_that_it_serves(tmp_path):
    plan = plan_study(STUDY, "quick", [], None, Records(tmp_path), workers=1)
    by_algorithm: dict[str, set] = {}
    for condition in plan.runs:
        (_, algorithm), *geometry = condition.levels
        by_algorithm.setdefault(algorithm, set()).add(tuple(geometry))
    everywhere = by_algorithm.pop("native")
    assert len(everywhere) == 4 * 3 * 2 * 2
    assert by_algorithm.pop("winograd") == {g for g in everywhere if ("kernel", "3") in g}
    assert set(by_algorithm) == {"auto", "direct", "im2col", "fft"}
    assert all(geometries == everywhere for geometries in by_algorithm.values())


def test_a_design_that_is_asked_for_goes_before_the_studys_own(tmp_path):
    plan = plan_study(STUDY, "smoke", [], None, Records(tmp_path), workers=1, design="one-factor")
    assert all(sum(levels != STUDY.baseline.levels[i] for i, levels in enumerate(c.levels)) <= 1 for c in plan.runs)


def test_digits_count_the_decimals_in_which_numbers_agree():
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert _digits(exact + torch.tensor([0.005, 0.0]), exact) == pytest.approx(3.0, abs=1e-3)
    assert 15 < _digits(exact, exact) < 16


@pytest.mark.parametrize("algorithm", [level.name for level in STUDY.factors[0].levels])
def test_every_algorithm_leaves_at_least_five_digits(algorithm):
    settings = STUDY.settings("smoke", STUDY.baseline) | {"algorithm": algorithm}
    task = ConvolutionTask(settings, 0)
    torch.manual_seed(0)
    model = task.model()

    class Predict:
        def module(self):
            return model

    responses, _ = task.evaluate(Predict())
    assert 5 < responses["digits"] < 8
    assert 5 < responses["gradient_digits"] < 8
