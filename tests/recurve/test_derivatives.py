"""Claims on derivatives of any order: numeric checks, dispatcher checks, torch.func, double backward."""

import pytest
import torch
from cases import Block, Sequence, assert_close, reference, results

import recurve
from recurve import ops

CALLS = [
    Sequence("lstm", steps=3, batch=2, inputs=2, hidden=3, resets=True),
    Sequence("gru", steps=3, batch=2, inputs=2, hidden=3, lengths=True, reverse=True),
    Sequence("rnn", steps=3, batch=2, inputs=2, hidden=3, no_bias=True, options={"activation": "tanh", "leak": 0.4}),
    Sequence("rnn", steps=2, batch=2, inputs=2, hidden=3, options={"activation": "sigmoid"}),
    Sequence("gru", steps=3, batch=2, inputs=2, hidden=3, lengths=True, options={"reset": "before"}),
    Sequence("lstm", steps=2, batch=2, inputs=2, hidden=2, models=2),
    Sequence("gru", steps=2, batch=2, inputs=2, hidden=2, models=2, shared=True),
    Block(batch=2, channels=2, outputs=3, size=(4, 5), options={"padding": 1, "activation": "tanh"}),
    Block(batch=1, channels=2, outputs=2, size=(6, 4), options={"groups": 2, "activation": "silu", "pool": "average"}),
    Block(batch=2, outputs=2, size=(4, 4), models=2, no_bias=True, options={"pool": "none", "activation": "sigmoid"}),
]
every_call = pytest.mark.parametrize("case", CALLS, ids=lambda case: f"{case.op}-{case}")


def positional(case, generator, function=None):
    """The op as a function of its tensors alone, and those, each requiring its gradient."""
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    function = getattr(ops, case.op) if function is None else function

    def call(*values):
        return function(**dict(zip(tensors, values, strict=True)), **arguments)

    return call, tuple(t.requires_grad_() for t in tensors.values())


@every_call
def test_gradients_equal_finite_differences(case, generator):
    call, tensors = positional(case, generator)
    with recurve.backend("fused"):
        assert torch.autograd.gradcheck(call, tensors)


@every_call
def test_second_gradients_equal_finite_differences(case, generator):
    call, tensors = positional(case, generator)
    with recurve.backend("fused"):
        assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


def third_derivative(call, tensors):
    value = sum(o.sin().sum() for o in as_tuple(call(*tensors)))
    for _ in range(3):
        grads = torch.autograd.grad(value, tensors, create_graph=True)
        value = sum(g.sin().sum() for g in grads)
    return {str(i): g.detach() for i, g in enumerate(grads)}


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


@every_call
def test_third_derivatives_equal_those_of_the_reference(case, generator):
    state = generator.get_state()
    call, tensors = positional(case, generator)
    generator.set_state(state)
    exact, _ = positional(case, generator, reference(case))
    with recurve.backend("fused"):
        found = third_derivative(call, tensors)
    assert_close(found, third_derivative(exact, tensors), 1e-9)


@every_call
def test_a_gradient_penalty_trains_as_with_the_reference(case, generator):
    """First and second order in one backward pass, and gradients accumulate in .grad."""

    def penalised(function):
        leaves = {n: t.detach().clone().requires_grad_() for n, t in tensors.items()}
        for _ in range(2):
            outputs = as_tuple(function(**leaves, **arguments))
            loss = sum(o.square().sum() for o in outputs)
            (dx,) = torch.autograd.grad(loss, leaves["x"], create_graph=True)
            (loss + dx.square().sum()).backward()
        return {n: t.grad for n, t in leaves.items()}

    tensors, arguments = case.tensors(generator), case.arguments(generator)
    with recurve.backend("fused"):
        found = penalised(getattr(ops, case.op))
    assert_close(found, penalised(reference(case)), 1e-8)


def dispatcher_call(case, generator):
    """Arguments of the registered op, by position, with tensors that require gradients."""
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    given = {name: t.requires_grad_() for name, t in tensors.items()}
    if isinstance(case, Block):
        options = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
        options |= {"activation": "relu", "pool": "max", "pool_size": [2, 2]}
        for name, value in arguments.items():
            options[name] = [value, value] if name in ("stride", "padding", "dilation") else value
        order = ("stride", "padding", "dilation", "groups", "activation", "pool", "pool_size")
        return given["x"], given["weight"], given.get("bias"), *(options[name] for name in order)
    states = [given[name] for name in ("h0", "c0") if name in given]
    rest = [given.get(name) for name in ("b_ih", "b_hh")]
    rest += [arguments.get("lengths"), arguments.get("resets"), arguments["reverse"]]
    if case.op == "gru":
        rest.append(arguments.get("reset", "after"))
    if case.op == "rnn":
        rest += [arguments.get("activation", "tanh"), arguments.get("leak", 1.0)]
    return given["x"], *states, given["w_ih"], given["w_hh"], *rest


@every_call
def test_the_registered_op_keeps_the_rules_of_the_dispatcher(case, generator):
    """Schema, autograd registration, fake tensors, and tracing with dynamic shapes."""
    torch.library.opcheck(getattr(torch.ops.recurve, case.op).default, dispatcher_call(case, generator))


BACKWARD_TESTS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("keep", [False, True], ids=["outputs", "kept"])
@pytest.mark.parametrize("case", [c for c in CALLS if isinstance(c, Sequence)], ids=str)
def test_the_parts_of_a_recurrent_op_keep_the_rules_of_the_dispatcher(case, keep, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    cell = 3 if arguments.get("reset") == "before" else ("lstm", "gru", "rnn").index(case.op)
    activation = {"tanh": 4, "sigmoid": 5, "relu": 1}[arguments.get("activation", "tanh")]
    names = ("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh")
    inputs = [*map(tensors.get, names), arguments.get("lengths"), arguments.get("resets")]
    options = [cell, case.reverse, activation, arguments.get("leak", 1.0)]
    torch.library.opcheck(
        torch.ops.recurve.sequence_forward.default,
        (*inputs, *options, keep),
        test_utils=("test_schema", "test_faketensor"),
    )
    if keep:
        y, h_n, c_n, gates, aux = torch.ops.recurve.sequence_forward(*inputs, *options, True)
        grads = [torch.ones_like(y), torch.ones_like(h_n), torch.ones_like(c_n) if case.op == "lstm" else None]
        for need in ((True, True, False), (False, True, False), (True, False, True)):  # dx, weights, norms
            torch.library.opcheck(
                torch.ops.recurve.sequence_backward.default,
                (*grads, *inputs, y, gates, aux, *options, *need),
                test_utils=BACKWARD_TESTS,
            )


@pytest.mark.parametrize("cut", [0, 1, 2], ids=["dy", "dh_n", "dc_n"])
def test_the_backward_of_a_recurrent_op_refuses_a_gradient_of_another_size(cut, generator):
    tensors = Sequence("lstm").tensors(generator)
    inputs = [*map(tensors.get, ("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh")), None, None]
    options = [0, False, 4, 1.0]
    y, h_n, c_n, gates, aux = torch.ops.recurve.sequence_forward(*inputs, *options, True)
    grads = [torch.ones_like(t) for t in (y, h_n, c_n)]
    grads[cut] = grads[cut][..., 1:]
    with pytest.raises(RuntimeError):
        torch.ops.recurve.sequence_backward(*grads, *inputs, y, gates, aux, *options, True, True, False)


@pytest.mark.parametrize("name", ["conv_block", "conv_block_winograd"])
@pytest.mark.parametrize("case", [c for c in CALLS if isinstance(c, Block)], ids=str)
def test_the_backward_of_the_block_keeps_the_rules_of_the_dispatcher(case, name, generator):
    if name == "conv_block_winograd" and "groups" in case.options:
        pytest.skip("Winograd's algorithm does not serve depthwise convolutions")
    inputs = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in dispatcher_call(case, generator))
    forward, backward = (getattr(torch.ops.recurve, f"{name}_{way}") for way in ("forward", "backward"))
    torch.library.opcheck(forward.default, inputs, test_utils=("test_schema", "test_faketensor"))
    y, places = forward(*inputs)
    for need in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(
            backward.default,
            (torch.ones_like(y), *inputs[:3], y, places, *inputs[3:], *need),
            test_utils=BACKWARD_TESTS,
        )


@pytest.mark.parametrize("name", ["conv_block", "conv_block_winograd"])
def test_a_block_of_channels_that_come_last_keeps_the_rules_of_the_dispatcher(name, generator):
    x, *others = dispatcher_call(Block(channels=4, options={"padding": 1}), generator)
    last = x.detach().to(memory_format=torch.channels_last)
    op, forward, backward = (getattr(torch.ops.recurve, name + way) for way in ("", "_forward", "_backward"))
    torch.library.opcheck(op.default, (last.requires_grad_(), *others))
    inputs = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in (last, *others))
    y, places = forward(*inputs)
    torch.library.opcheck(forward.default, inputs, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(
        backward.default,
        (torch.ones_like(y), *inputs[:3], y, places, *inputs[3:], True, True),
        test_utils=BACKWARD_TESTS,
    )


@every_call
def test_functional_gradients_equal_plain_ones(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)

    def loss(given, function):
        return sum(o.square().sum() for o in as_tuple(function(**given, **arguments)))

    found = torch.func.grad(loss)(tensors, getattr(ops, case.op))
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    grads = torch.autograd.grad(loss(leaves, reference(case)), list(leaves.values()))
    assert_close(found, dict(zip(leaves, grads, strict=True)), 1e-9)


@every_call
def test_forward_mode_equals_reverse_mode(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    tangents = {name: torch.ones_like(t) for name, t in tensors.items()}

    def loss(function):
        return lambda given: sum(o.square().sum() for o in as_tuple(function(**given, **arguments)))

    _, found = torch.func.jvp(loss(getattr(ops, case.op)), (tensors,), (tangents,))
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    grads = torch.autograd.grad(loss(reference(case))(leaves), list(leaves.values()))
    torch.testing.assert_close(found, sum(g.sum() for g in grads), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [c for c in CALLS if c.models is None], ids=lambda case: f"{case.op}-{case}")
def test_per_sample_gradients_by_vmap_of_grad(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    xs = torch.stack([tensors["x"], 2 * tensors["x"], -tensors["x"]])

    def loss(weight, x, function):
        outputs = function(**(tensors | {"x": x, name: weight}), **arguments)
        return sum(o.square().sum() for o in as_tuple(outputs))

    name = "weight" if isinstance(case, Block) else "w_hh"
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, None))(tensors[name], xs, getattr(ops, case.op))
    expected = [torch.func.grad(loss)(tensors[name], x, reference(case)) for x in xs]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-9)


@every_call
def test_hooks_and_detached_parts_see_ordinary_gradients(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    seen = []
    leaves = {n: t.requires_grad_() for n, t in tensors.items()}
    doubled = leaves | {"x": leaves["x"] * 2}
    doubled["x"].register_hook(lambda g: seen.append(g) or torch.zeros_like(g))
    with recurve.backend("fused"):
        outputs = as_tuple(getattr(ops, case.op)(**doubled, **arguments))
    sum(o.sum() for o in outputs).backward()
    assert len(seen) == 1
    assert seen[0].abs().sum() > 0
    assert not leaves["x"].grad.any()


def test_a_backward_pass_after_a_weight_changed_in_place_is_refused(generator):
    tensors = {n: t.requires_grad_() for n, t in CALLS[0].tensors(generator).items()}
    with recurve.backend("fused"):
        y, *_ = ops.lstm(**tensors)
    with torch.no_grad():
        tensors["w_hh"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_backward_pass_needs_the_graph_kept(generator):
    tensors = {n: t.requires_grad_() for n, t in CALLS[0].tensors(generator).items()}
    with recurve.backend("fused"):
        y, *_ = ops.lstm(**tensors)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_checkpointing_gives_the_same_gradients(generator):
    case = Sequence("gru", hidden=9)
    tensors = case.tensors(generator)

    def checkpointed(**given):
        return torch.utils.checkpoint.checkpoint(lambda: ops.gru(**given), use_reentrant=False)

    with recurve.backend("fused"):
        found, expected = results(checkpointed, tensors, {}), results(ops.gru, tensors, {})
    assert_close(found, expected, 0)
