"""Peers: right where they are installed, left out by name where they are not."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from bench import peers
from bench.cases import Case, name_of, parse
from bench.protocol import NATIVE, OURS, check, measure

CASES = [
    parse(name)
    for name in (
        *("recurrent-LSTM-infer-T5-B3-I2-H8", "recurrent-GRU-infer-T5-B3-I6-H8-bidirectional"),
        *("recurrent-RNN-infer-T5-B3-I2-H8", "recurrent-GRU-train-T5-B3-I6-H8", "recurrent-LSTM-train-T5-B3-I2-H8"),
        *("conv-infer-B2-C6-O6-S7-K5-depthwise", "conv-train-B2-C4-O6-S8-K3", "conv-train-B2-C1-O6-S8-K3"),
        *("ensemble-LSTM-train-E3-T5-B2-I6-H8", "ensemble-GRU-infer-E3-T5-B2-I1-H8"),
    )
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("name", ["onnxruntime", "jax"])
def test_a_peer_that_is_installed_answers_as_float64_does(name: str, case: Case) -> None:
    if peers.PEERS[name].missing:
        pytest.skip(f"{name} is not installed")
    problem, left_out = peers.joined(case, case.problem(), [name])
    assert set(problem.competitors) | set(left_out) == {OURS, NATIVE, name}
    check(problem)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if "T5" not in case.shape or "train" in case.group], ids=name_of
)
def test_the_compiled_loop_answers_as_float64_does(case: Case) -> None:
    problem, left_out = peers.joined(case, case.problem(), ["torch.compile"])
    assert ("torch.compile" in problem.competitors) != ("torch.compile" in left_out)
    check(problem)


def test_a_peer_that_is_not_installed_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", {})
    peers.register("caffe", "nowhere:competitor", "caffe_of_2014")
    problem, left_out = peers.joined(CASES[0], CASES[0].problem(), ["caffe"])
    assert set(problem.competitors) == {OURS, NATIVE}
    assert left_out == {"caffe": "not installed: caffe_of_2014; `pip install 'recurve[peers]'`"}


def test_a_peer_of_a_package_that_is_absent_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", {})
    peers.register("caffe", "nowhere:competitor", "caffe_of_2014.python")
    missing = peers.PEERS["caffe"].missing
    assert missing is not None
    assert "not installed: caffe_of_2014.python" in missing


@pytest.mark.parametrize("name", ["recurve", "torch.nn", "recurve again", "all", "one,two"])
def test_a_peer_takes_no_name_that_is_taken(name: str) -> None:
    with pytest.raises(ValueError, match="no peer can be called"):
        peers.register(name, "nowhere:competitor")


def test_a_registered_peer_competes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", {})
    peers.register("again", "bench.peer_compile:competitor")
    case = parse("recurrent-GRU-infer-T5-B3-I2-H8")
    assert "again" in peers.joined(case, case.problem(), ["again"])[0].competitors


@pytest.mark.parametrize("name", ["LSTM-train-T5-B3-I6-H8", "GRU-train-T5-B3-I2-H8", "RNN-infer-T5-B3-I2-H8"])
def test_products_alone_are_those_that_a_case_counts(name: str) -> None:
    case = parse(f"recurrent-{name}")
    problem, _ = peers.joined(case, case.problem(), ["products"])
    with FlopCounterMode(display=False) as counter:
        problem.competitors["products"].run(problem.samples[0])
    assert counter.get_total_flops() == case.flops


def test_a_yardstick_is_timed_in_the_same_blocks_and_not_judged() -> None:
    case = parse("recurrent-GRU-train-T5-B3-I6-H8")
    problem, _ = peers.joined(case, case.problem(), ["products"])
    seconds = measure(problem, 0.01).seconds
    assert seconds["products"].shape == seconds[OURS].shape


def test_a_peer_says_why_it_does_not_compute_a_case() -> None:
    case = parse("recurrent-GRU-train-T90-B3-I2-H8")
    _, left_out = peers.joined(case, case.problem(), ["torch.compile"])
    assert left_out == {"torch.compile": "a loop of more than 64 steps compiles for minutes"}
