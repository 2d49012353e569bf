"""Cases: right answers on both sides, arithmetic counted rightly, names that select."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import UNDECIDED, Case, Convolution, Ensemble, Mode, Recurrent, _cotangent, name_of, parse
from bench.declared import cases
from bench.protocol import OURS, WrongAnswer, check

SMALL: list[Case] = [
    Recurrent("LSTM", "train", 5, 3, 2, 8, 2, True),
    Recurrent("GRU", "train", 5, 3, 6, 8),
    Recurrent("GRU", "infer", 5, 3, 6, 8, 2),
    Ensemble("LSTM", "train", 3, 5, 2, 3, 8),
    Ensemble("GRU", "infer", 3, 5, 2, 6, 8),
    Convolution("train", 2, 4, 6, 7, 3),
    Convolution("train", 2, 1, 6, 8, 5),
    Convolution("infer", 2, 6, 6, 8, 3, True),
]


@pytest.mark.parametrize("case", SMALL, ids=name_of)
def test_both_sides_of_every_kind_of_case_answer_as_float64_does(case: Case) -> None:
    check(case.problem())


@pytest.mark.parametrize("case", SMALL, ids=name_of)
def test_every_output_and_gradient_is_checked(case: Case) -> None:
    problem = case.problem()
    ours = problem.competitors[OURS]
    for index in range(len(ours.answer(ours.run(problem.samples[0])[0]))):

        def bent(answer: object, index: int = index) -> list[torch.Tensor]:
            tensors = list(ours.answer(answer))
            tensors[index] = tensors[index] * 1.01
            return tensors

        with pytest.raises(WrongAnswer, match=f"tensor {index + 1} of"):
            check(replace(problem, competitors={**problem.competitors, OURS: replace(ours, answer=bent)}))


def test_training_asks_for_the_gradient_of_an_input_unless_it_is_data() -> None:
    parameters = outputs = 2
    for width, gradients in ((3, 0), (4, 1)):
        problem = Convolution("train", 1, width, 2, 8, 3).problem()
        answer, _ = problem.reference.run(tuple(t.double() for t in problem.samples[0]))
        assert len(answer) == parameters + outputs - 1 + gradients


def test_gradients_go_nowhere_where_rounding_decides_the_winner_of_a_window() -> None:
    tied = torch.tensor([[1.0, 1.0 + 1e-6], [0.0, -1.0]])
    near_zero = torch.tensor([[1e-6, -1.0], [-2.0, -3.0]])
    clear = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    closed = torch.tensor([[-1.0, -1.0], [-2.0, -3.0]])
    windows = torch.stack([tied, near_zero, clear, closed]).view(1, 4, 2, 2)
    assert (_cotangent(windows, UNDECIDED) != 0).flatten().tolist() == [False, False, True, True]
    assert (_cotangent(windows, 2.0) != 0).flatten().tolist() == [False] * 4


def test_arithmetic_of_an_lstm_is_that_of_its_matrix_products() -> None:
    forward = 2 * 30 * 32 * (4 * 32) * (16 + 32)
    assert Recurrent("LSTM", "infer", 30, 32, 16, 32).flops == forward
    assert Recurrent("LSTM", "train", 30, 32, 16, 32).flops == 3 * forward
    assert Recurrent("LSTM", "train", 30, 32, 3, 32).flops == 2 * 30 * 32 * (4 * 32) * (2 * 3 + 3 * 32)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_arithmetic_of_a_convolution_is_what_torch_counts_with_a_quarter_of_the_gradients(mode: Mode) -> None:
    x, weight = (torch.randn(shape, requires_grad=mode == "train") for shape in ((2, 4, 8, 8), (6, 4, 3, 3)))
    with FlopCounterMode(display=False) as counter:
        y = torch.nn.functional.conv2d(x, weight, padding=1)
        forward = counter.get_total_flops()
        if mode == "train":
            y.sum().backward()
    assert Convolution(mode, 2, 4, 6, 8, 3).flops == forward + (counter.get_total_flops() - forward) // 4


def test_two_layers_and_two_directions_count_what_each_layer_reads() -> None:
    def columns(rows: int) -> int:
        return 2 * 5 * 2 * (3 * 8) * rows

    assert Recurrent("GRU", "infer", 5, 2, 6, 8, 2).flops == columns(6 + 8) + columns(8 + 8)
    assert Recurrent("GRU", "infer", 5, 2, 6, 8, 1, True).flops == 2 * columns(6 + 8)
    assert Recurrent("GRU", "infer", 5, 2, 6, 8, 2, True).flops == 2 * columns(6 + 8) + 2 * columns(16 + 8)


@pytest.mark.parametrize("case", SMALL, ids=name_of)
def test_the_most_frugal_arithmetic_and_the_traffic_are_no_more_than_what_is_done(case: Case) -> None:
    assert 0 < case.least_flops <= case.flops
    problem = case.problem()
    answer = problem.competitors[OURS].answer(problem.competitors[OURS].run(problem.samples[0])[0])
    assert case.bytes <= 4 * sum(t.numel() for t in [*problem.samples[0], *answer, *_weights(problem.models)])


def test_traffic_of_a_small_gru_is_what_its_tensors_hold() -> None:
    x, y, weights = 5 * 2 * 6, 5 * 2 * 8, 3 * 8 * (6 + 8 + 2)
    assert Recurrent("GRU", "infer", 5, 2, 6, 8).bytes == 4 * (x + weights + y)
    assert Recurrent("GRU", "train", 5, 2, 6, 8).bytes == 4 * 2 * (x + weights + y)
    assert Recurrent("GRU", "train", 5, 2, 1, 8).bytes == 4 * (5 * 2 + 2 * (3 * 8 * (1 + 8 + 2) + y))


def test_every_declared_case_has_a_name_of_its_own_that_reads_back() -> None:
    declared = cases(full=True, device="cuda")
    assert len({name_of(case) for case in declared}) == len(declared)
    assert [parse(name_of(case)) for case in declared] == declared


def test_the_main_table_is_part_of_the_full_one_and_large_cases_are_left_to_gpus() -> None:
    main, full, large = cases(), cases(full=True), cases(full=True, device="cuda")
    assert set(main) < set(full) < set(large)
    assert max(case.hidden_size for case in full if isinstance(case, Recurrent)) == 1024
    assert max(case.hidden_size for case in large if isinstance(case, Recurrent)) == 4096
    assert {case.models for case in full if isinstance(case, Ensemble)} >= {1, 32, 256}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("pool-train-B1", "'pool-train-B1' is of no known kind; allowed: recurrent, ensemble, conv"),
        ("recurrent-CNN-train-T1-B1-I1-H1", "'CNN' stands where one of LSTM, GRU, RNN belongs"),
        ("recurrent-GRU-train-T3-B0-I1-H4", "'B0' is no size B above 0"),
        ("recurrent-GRU-train-T3-B2-I1", "'' is no size H above 0; it reads recurrent-CELL-MODE-T1-B1-I1-H1"),
        (
            "conv-infer-B1-C3-O32-S32-K3-L2",
            "'L2' is not understood; allowed: conv-MODE-B1-C1-O1-S1-K1[-depthwise][-nhwc]",
        ),
    ],
)
def test_a_name_that_is_no_case_says_what_is_wrong_with_it(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse(name)


def _weights(models: Sequence[torch.nn.Module]) -> list[torch.Tensor]:
    return [weight for model in models for weight in model.parameters()]
