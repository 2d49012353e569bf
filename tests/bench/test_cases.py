"""Cases: right answers on both sides, arithmetic counted rightly, names that select."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import CONVOLUTIONS, ENSEMBLES, RECURRENT, Case, Convolution, Ensemble, Mode, Recurrent, _cotangent
from bench.protocol import OURS, Competitor, WrongAnswer, check

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


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.group}-{case.shape}")
def test_both_sides_of_every_kind_of_case_answer_as_float64_does(case: Case) -> None:
    check(case.problem())


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.group}-{case.shape}")
def test_every_output_and_gradient_is_checked(case: Case) -> None:
    problem = case.problem()
    ours = problem.competitors[OURS]
    for index in range(len(ours.answer(ours.run(problem.samples[0])))):

        def bent(answer: object, index: int = index) -> list[torch.Tensor]:
            tensors = list(ours.answer(answer))
            tensors[index] = tensors[index] * 1.01
            return tensors

        with pytest.raises(WrongAnswer, match=f"tensor {index + 1} of"):
            check(replace(problem, competitors={**problem.competitors, OURS: Competitor(ours.run, bent)}))


def test_training_asks_for_the_gradient_of_an_input_unless_it_is_data() -> None:
    parameters = outputs = 2
    for width, gradients in ((3, 0), (4, 1)):
        problem = Convolution("train", 1, width, 2, 8, 3).problem()
        answer = problem.reference.run(tuple(t.double() for t in problem.samples[0]))
        assert len(answer) == parameters + outputs - 1 + gradients


def test_gradients_go_nowhere_where_rounding_decides_the_winner_of_a_window() -> None:
    tied = torch.tensor([[1.0, 1.0 + 1e-6], [0.0, -1.0]])
    near_zero = torch.tensor([[1e-6, -1.0], [-2.0, -3.0]])
    clear = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    closed = torch.tensor([[-1.0, -1.0], [-2.0, -3.0]])
    windows = torch.stack([tied, near_zero, clear, closed]).view(1, 4, 2, 2)
    assert (_cotangent(windows) != 0).flatten().tolist() == [False, False, True, True]


def test_arithmetic_of_an_lstm_is_that_of_its_matrix_products() -> None:
    forward = 2 * 30 * 32 * (4 * 32) * (16 + 32)
    assert Recurrent("LSTM", "infer", 30, 32, 16, 32).flops == forward
    assert Recurrent("LSTM", "train", 30, 32, 16, 32).flops == 3 * forward
    assert Recurrent("LSTM", "train", 30, 32, 3, 32).flops == 2 * 30 * 32 * (4 * 32) * (2 * 3 + 3 * 32)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_arithmetic_of_a_convolution_is_what_torch_counts(mode: Mode) -> None:
    x, weight = (torch.randn(shape, requires_grad=mode == "train") for shape in ((2, 4, 8, 8), (6, 4, 3, 3)))
    with FlopCounterMode(display=False) as counter:
        y = torch.nn.functional.conv2d(x, weight, padding=1)
        if mode == "train":
            y.sum().backward()
    assert Convolution(mode, 2, 4, 6, 8, 3).flops == counter.get_total_flops()


def test_two_layers_and_two_directions_count_what_each_layer_reads() -> None:
    def columns(rows: int) -> int:
        return 2 * 5 * 2 * (3 * 8) * rows

    assert Recurrent("GRU", "infer", 5, 2, 6, 8, 2).flops == columns(6 + 8) + columns(8 + 8)
    assert Recurrent("GRU", "infer", 5, 2, 6, 8, 1, True).flops == 2 * columns(6 + 8)
    assert Recurrent("GRU", "infer", 5, 2, 6, 8, 2, True).flops == 2 * columns(6 + 8) + 2 * columns(16 + 8)


def test_every_case_has_a_name_of_its_own() -> None:
    names = [f"{case.group}-{case.shape}" for case in [*RECURRENT, *ENSEMBLES, *CONVOLUTIONS]]
    assert len(set(names)) == len(names)
    assert {"recurrent-LSTM-train-T30-B32-I3-H32", "ensemble-GRU-train-E32-T30-B32-I3-H32"} < set(names)
    assert "conv-train-B64-C64-O64-S16-K7-depthwise" in names
