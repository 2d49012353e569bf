"""Claims on probes: norms of the gradients of each step's state, shares of saturated gates, and nothing without one."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from cases import GATES, STATES, Sequence, needs_kernels

import recurve
from recurve import _extension, ops

CASES = [
    *(Sequence(op, steps=6, batch=5, hidden=20) for op in GATES),
    Sequence("gru", steps=4, hidden=20, options={"reset": "before"}),
    Sequence("rnn", hidden=20, options={"activation": "relu", "leak": 0.5}),
]
CASES += [replace(case, models=3, shared=True) for case in CASES]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def probed(case, backend, tensors, arguments):
    """The call as the probe saw it, after a loss that reaches all steps and the last states."""
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    with recurve.backend(backend), recurve.nn.probe() as record:
        outputs = getattr(ops, case.op)(**leaves, **arguments)
    sum(o.square().sum() for o in outputs).backward()
    (call,) = record.calls
    return call


@needs_kernels
@every_case
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
def test_the_kernels_record_what_hooks_on_the_reference_record(case, reverse, lengths, generator):
    case = replace(case, reverse=reverse, lengths=lengths, resets=True)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    found = probed(case, "fused", tensors, arguments)
    expected = probed(case, "native", tensors, arguments)
    for name in ("saturated", "dh_norms", "dc_norms"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True, msg=name)
    models = () if case.models is None else (case.models,)
    assert found.dh_norms.shape == (*models, case.steps)
    assert found.saturated.shape == (*models, case.steps, len(found.gates))
    assert (found.dc_norms is None) == (case.op != "lstm")


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_a_linear_network_of_scaled_rotations_shrinks_the_gradient_by_its_scale(backend, generator):
    """W = 0.9 Q with orthogonal Q, relu units that never close: the norm at lag k is 0.9^k of the last one."""
    rotation = torch.eye(8, dtype=torch.float64).roll(1, 0)
    tensors = Sequence("rnn", steps=30, batch=1, hidden=8).tensors(generator)
    tensors |= {"w_hh": 0.9 * rotation, "x": tensors["x"].abs(), "w_ih": tensors["w_ih"].abs()}
    tensors |= {name: tensors[name].abs() for name in ("h0", "b_ih", "b_hh")}
    tensors["w_hh"].requires_grad_()
    with recurve.backend(backend), recurve.nn.probe() as record:
        y, _ = ops.rnn(**tensors, activation="relu")
        y[-1].sum().backward()
        (call,) = record.calls
    expected = 8**0.5 * 0.9 ** torch.arange(29, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(call.dh_norms, expected)
    assert not call.saturated.any()


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_with_frozen_gates_the_gradient_of_the_cell_is_the_product_of_the_forget_gates(backend, generator):
    """Without recurrent weights the gates depend on the input alone."""
    tensors = Sequence("lstm", steps=12, batch=1, hidden=1).tensors(generator)
    tensors["w_hh"].zero_()
    tensors["c0"].requires_grad_()
    with recurve.backend(backend), recurve.nn.probe() as record:
        _, _, last = ops.lstm(**tensors)
        last.sum().backward()
    weights, bias = tensors["w_ih"][1], tensors["b_ih"][1] + tensors["b_hh"][1]
    forget = torch.sigmoid(tensors["x"][:, 0] @ weights + bias)  # (T,)
    after = forget.flip(0).cumprod(0).flip(0)
    torch.testing.assert_close(tensors["c0"].grad.squeeze(), after[0])
    torch.testing.assert_close(record.calls[0].dc_norms, torch.cat([after[1:], torch.ones(1, dtype=after.dtype)]))


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_open_and_half_open_gates_are_told_apart(backend):
    module = recurve.nn.LSTM(2, 5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0[5:10] = 9  # forget gates
    with recurve.backend(backend), recurve.nn.probe() as record, torch.no_grad():
        module(torch.zeros(3, 2, 2))
    (call,) = record.calls
    assert call.gates == ("i", "f", "g", "o")
    assert call.saturated.tolist() == [[0, 1, 0, 0]] * 3
    assert call.dh_norms.isnan().all()


def test_calls_stand_in_their_order_and_the_backward_pass_may_come_later(generator):
    module = recurve.nn.GRU(3, 4, 2, bidirectional=True)
    with recurve.nn.probe() as record:
        y, _ = module(torch.randn(5, 2, 3))
        with recurve.backend("native"):
            recurve.nn.RNN(3, 4)(torch.randn(5, 2, 3))
        recurve.nn.LSTM(3, 4)(torch.randn(5, 2, 3))
        assert [call.op for call in record.calls] == ["gru"] * 4 + ["rnn", "lstm"]
    assert all(call.dh_norms.isnan().all() for call in record.calls)
    y.sum().backward()
    assert all((call.dh_norms > 0).all() for call in record.calls[:4])


@needs_kernels
def test_models_under_vmap_are_recorded_apart(generator):
    case = Sequence("lstm", hidden=9)
    tensors = case.tensors(generator)
    weights = torch.stack([tensors["w_hh"], 2 * tensors["w_hh"]]).requires_grad_()
    with recurve.nn.probe() as record:
        y, *_ = torch.vmap(lambda w: ops.lstm(**(tensors | {"w_hh": w})))(weights)
    y.square().sum().backward()
    (call,) = record.calls
    for model in range(2):
        alone = probed_alone(tensors | {"w_hh": weights[model].detach()})
        torch.testing.assert_close(call.dh_norms[model], alone.dh_norms)
        torch.testing.assert_close(call.saturated[model], alone.saturated)


def probed_alone(tensors):
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    with recurve.nn.probe() as record:
        y, *_ = ops.lstm(**leaves)
    y.square().sum().backward()
    return record.calls[0]


@pytest.mark.parametrize("op", STATES)
def test_a_probe_changes_no_result(op, generator):
    case = Sequence(op)
    tensors = {name: t.requires_grad_() for name, t in case.tensors(generator).items()}
    with recurve.backend("fused" if _extension.has(op) else "native"):
        plain = getattr(ops, op)(**tensors)
    grads = torch.autograd.grad(plain[0].sum(), list(tensors.values()))
    with recurve.nn.probe():
        seen = getattr(ops, op)(**tensors)
        grads_seen = torch.autograd.grad(seen[0].sum(), list(tensors.values()))
    rounding = 0 if _extension.has(op) else 1e-12  # natively, a probed call runs on the reference
    for a, b in zip((*plain, *grads), (*seen, *grads_seen), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=rounding)


def test_probes_nest_and_end_with_their_block(generator):
    module, x = recurve.nn.GRU(3, 4), torch.randn(5, 2, 3)
    with recurve.nn.probe() as outer:
        module(x)
        with recurve.nn.probe() as inner:
            module(x)
        module(x)
    module(x)
    assert (len(outer.calls), len(inner.calls)) == (2, 1)


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_a_probe_neither_sees_nor_disturbs_other_threads(backend, generator):
    module, x = recurve.nn.GRU(3, 4), torch.randn(5, 2, 3)
    with recurve.nn.probe() as record, recurve.backend(backend), ThreadPoolExecutor(1) as other:
        module(x)
        other.submit(module, x).result()
    assert len(record.calls) == 1


def test_a_second_derivative_is_not_taken_for_a_call(generator):
    case = Sequence("gru")
    tensors = {name: t.requires_grad_() for name, t in case.tensors(generator).items()}
    with recurve.nn.probe() as record:
        y, _ = ops.gru(**tensors)
        (dx,) = torch.autograd.grad(y.square().sum(), tensors["x"], create_graph=True)
        dx.square().sum().backward()
    assert len(record.calls) == 1


def test_a_probe_of_a_reference_under_a_transform_is_refused_with_the_reason(generator):
    tensors = Sequence("gru").tensors(generator)
    with (
        recurve.nn.probe(),
        pytest.raises(RuntimeError, match=r"a probe sees gru under torch.vmap and torch.func only"),
    ):
        torch.func.grad(lambda x: ops.gru(**(tensors | {"x": x}))[0].sum())(tensors["x"])
