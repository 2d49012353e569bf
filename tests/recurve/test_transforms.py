"""Claims on torch.compile, torch.vmap and torch.export: modules go through them, with the same results."""

import pytest
import torch
from cases import Block, Sequence, assert_close, normal, reference, results
from torch.func import functional_call, stack_module_state

import recurve
from recurve import ops

FACTORIES = {
    "LSTM": lambda: recurve.nn.LSTM(3, 5, 2, bidirectional=True, dtype=torch.float64),
    "GRU": lambda: recurve.nn.GRU(3, 5, batch_first=True, dtype=torch.float64),
    "RNN": lambda: recurve.nn.RNN(3, 5, nonlinearity="relu", bias=False, dtype=torch.float64),
    "LSTMCell": lambda: recurve.nn.LSTMCell(3, 5, dtype=torch.float64),
    "GRUCell": lambda: recurve.nn.GRUCell(3, 5, dtype=torch.float64),
    "RNNCell": lambda: recurve.nn.RNNCell(3, 5, dtype=torch.float64),
    "Conv2d": lambda: recurve.nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular", dtype=torch.float64),
    "ConvBlock": lambda: recurve.nn.ConvBlock(3, 5, 3, padding="same", dtype=torch.float64),
    "ConvBlockEven": lambda: recurve.nn.ConvBlock(3, 5, 2, padding="same", pool="average", dtype=torch.float64),
}
SHAPES = {
    "LSTM": (6, 4, 3),
    "GRU": (4, 6, 3),
    "RNN": (6, 4, 3),
    "Conv2d": (2, 3, 9, 8),
    "ConvBlock": (2, 3, 9, 8),
    "ConvBlockEven": (2, 3, 9, 8),
}
every_module = pytest.mark.parametrize("name", FACTORIES)
CALLS = [
    Sequence("lstm", lengths=True, resets=True),
    Sequence("gru", reverse=True, no_bias=True),
    Sequence("rnn", options={"leak": 0.5}),
    Block(options={"padding": 1}),
]
every_call = pytest.mark.parametrize("case", CALLS, ids=lambda case: case.op)


def shape_of(name):
    return SHAPES.get(name, (4, 3))


def flat(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else [t for part in outputs for t in flat(part)]


def outcome(module, x, call=None):
    x = x.detach().requires_grad_()
    module.zero_grad()
    outputs = flat((module if call is None else call)(x))
    sum((o * (i + 1)).sin().sum() for i, o in enumerate(outputs)).backward()
    found = {f"output {i}": o.detach() for i, o in enumerate(outputs)} | {"gradient of x": x.grad}
    return found | {f"gradient of {n}": p.grad.clone() for n, p in module.named_parameters()}


@every_module
def test_compiles_as_one_graph_and_trains(name, generator):
    module = FACTORIES[name]()
    x = normal(shape_of(name), generator)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(outcome(module, x, compiled), outcome(module, x), 1e-10)


@pytest.mark.parametrize("name", ["GRU", "ConvBlock"])
def test_compiles_with_dynamic_shapes(name, generator):
    module = FACTORIES[name]()
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    first, *rest = shape_of(name)
    for batch in (first, first + 3, first + 8):
        x = normal((batch, *rest), generator)
        assert_close(outcome(module, x, compiled), outcome(module, x), 1e-10)


@every_call
def test_ops_compile_as_one_graph(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    torch.compiler.reset()
    compiled = torch.compile(getattr(ops, case.op), fullgraph=True, backend="aot_eager")
    assert_close(results(compiled, tensors, arguments), results(reference(case), tensors, arguments), 1e-10)


@pytest.mark.slow
@every_module
def test_compiles_with_inductor(name, generator):
    module = FACTORIES[name]()
    x = normal(shape_of(name), generator)
    torch.compiler.reset()
    assert_close(outcome(module, x, torch.compile(module, fullgraph=True)), outcome(module, x), 1e-10)


@pytest.mark.parametrize("backend", ["auto", "native"])
@every_module
def test_compiles_on_either_backend(name, backend, generator):
    module = FACTORIES[name]().eval()
    x = normal(shape_of(name), generator)
    torch.compiler.reset()
    with recurve.backend(backend), torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(flat(compiled(x)), flat(module(x)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("channels", [2, 16])
def test_exports_with_sizes_left_open(channels, generator):
    module = recurve.nn.Conv2d(channels, 16, 3, padding=1)
    x = normal((2, channels, 12, 12), generator).float()
    open_sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    exported = torch.export.export(module, (x,), dynamic_shapes=(open_sizes,)).module()
    for shape in ((5, channels, 64, 61), (2, channels, 4, 4)):
        other = normal(shape, generator).float()
        torch.testing.assert_close(exported(other), module(other), rtol=0, atol=1e-4)


@every_module
def test_exports_and_the_export_gives_the_same(name, generator):
    module = FACTORIES[name]().eval()
    x = normal(shape_of(name), generator)
    exported = torch.export.export(module, (x,))
    other = normal(shape_of(name), generator)
    torch.testing.assert_close(flat(exported.module()(other)), flat(module(other)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("randomness", ["own_data", "shared_data"])
@every_module
def test_a_stack_of_modules_trains_as_each_alone(name, randomness, generator):
    """vmap over stacked parameters, plain backward, two steps of descent, against a loop over the modules."""
    modules = [FACTORIES[name]() for _ in range(3)]
    own = randomness == "own_data"
    xs = normal((3, *shape_of(name)), generator) if own else normal(shape_of(name), generator)
    stacked, _ = stack_module_state(modules)

    def call(parameters, x):
        return flat(functional_call(modules[0], parameters, (x,)))

    for _ in range(2):
        outputs = torch.vmap(call, in_dims=(0, 0 if own else None))(stacked, xs)
        grads = torch.autograd.grad(sum(o.sin().sum() for o in outputs), list(stacked.values()))
        with torch.no_grad():
            for parameter, grad in zip(stacked.values(), grads, strict=True):
                parameter -= 0.05 * grad
    for e, module in enumerate(modules):
        for _ in range(2):
            outputs = flat(module(xs[e] if own else xs))
            grads = torch.autograd.grad(sum(o.sin().sum() for o in outputs), list(module.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(module.parameters(), grads, strict=True):
                    parameter -= 0.05 * grad
        for key, parameter in module.named_parameters():
            torch.testing.assert_close(stacked[key][e], parameter, rtol=0, atol=1e-10)


@every_call
def test_vmap_over_weights_runs_on_the_ensemble_axis(case, generator):
    """One call of the fused op, not one per model."""
    kinds = dict.fromkeys(("steps", "batch"), 3)
    many = Sequence(case.op, **kinds, models=4) if isinstance(case, Sequence) else Block(models=4)
    tensors = many.tensors(generator)

    def call(given):
        return getattr(ops, case.op)(**given)

    def mapped(**given):
        return torch.vmap(call)(given)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, recurve.backend("fused"):
        found = results(mapped, tensors, {}, wanted=())
    calls = [event for event in profile.events() if event.name == f"recurve::{case.op}"]
    assert calls
    kernels = [e for e in profile.events() if e.name == "recurve::sequence_forward"] or calls
    assert len({e.id for e in kernels}) < 4
    assert_close(found, results(reference(many), tensors, {}, wanted=()), 1e-10)
    with recurve.backend("fused"):
        assert_close(results(mapped, tensors, {}), results(reference(many), tensors, {}), 1e-10)


def subsets(case, names):
    """Which tensors a vmap maps: each alone, each left out, and at other places than the front."""
    for name in names:
        yield f"only_{name}", {n: 0 if n == name else None for n in names}
        yield f"not_{name}", {n: None if n == name else 0 for n in names}
    yield "last", dict.fromkeys(names, -1)
    yield "second", dict.fromkeys(names, 1)


@every_call
def test_vmap_over_any_subset_and_place(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    function = getattr(ops, case.op)
    for what, dims in subsets(case, list(tensors)):
        given = {
            n: t if dims[n] is None else torch.stack([t, 2 * t, -t]).movedim(0, dims[n]) for n, t in tensors.items()
        }

        def mapped(exact=False, dims=dims, **leaves):
            inner = reference(case) if exact else function
            return torch.vmap(lambda part: inner(**part, **arguments), in_dims=(dims,))(leaves)

        with recurve.backend("fused"):
            found = results(mapped, given, {})
        expected = results(lambda mapped=mapped, **leaves: mapped(exact=True, **leaves), given, {})
        try:
            assert_close(found, expected, 1e-9)
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from error


@every_call
def test_vmap_on_the_native_backend_gives_the_same(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    stacked = {n: torch.stack([t, -t]) for n, t in tensors.items()}
    call = torch.vmap(lambda part: getattr(ops, case.op)(**part, **arguments))
    with recurve.backend("native"):
        native = flat(call(stacked))
    torch.testing.assert_close(native, flat(call(stacked)), rtol=0, atol=1e-10)


@every_call
def test_vmap_within_vmap_is_refused_with_the_reason_or_right(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    twice = {n: torch.stack([torch.stack([t, -t])] * 2) for n, t in tensors.items()}
    inner = torch.vmap(lambda part: getattr(ops, case.op)(**part, **arguments))
    with recurve.backend("fused"), pytest.raises(NotImplementedError, match="ensemble axis already"):
        torch.vmap(inner)(twice)


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
def test_vmap_over_lengths_is_refused_with_the_reason(op, generator):
    tensors = Sequence(op).tensors(generator)
    lengths = torch.tensor([[1, 2, 3], [5, 5, 5]])
    with recurve.backend("fused"), pytest.raises(NotImplementedError, match="lengths or resets"):
        torch.vmap(lambda n: getattr(ops, op)(**tensors, lengths=n))(lengths)


@every_module
def test_functional_gradient_of_a_module(name, generator):
    module = FACTORIES[name]()
    x = normal(shape_of(name), generator)
    parameters = {n: p.detach() for n, p in module.named_parameters()}

    def loss(parameters):
        return sum(o.sin().sum() for o in flat(functional_call(module, parameters, (x,))))

    found = torch.func.grad(loss)(parameters)
    grads = torch.autograd.grad(sum(o.sin().sum() for o in flat(module(x))), list(module.parameters()))
    assert_close(found, dict(zip(parameters, grads, strict=True)), 1e-10)
    value, tangent = torch.func.jvp(loss, (parameters,), ({n: torch.ones_like(p) for n, p in parameters.items()},))
    assert value.item() == pytest.approx(loss(parameters).item(), abs=1e-10)
    assert tangent.item() == pytest.approx(sum(g.sum().item() for g in grads), abs=1e-8)


@every_module
def test_double_backward_of_a_module(name, generator):
    module = FACTORIES[name]()
    x = normal(shape_of(name), generator).requires_grad_()

    def penalty():
        (dx,) = torch.autograd.grad(sum(o.sin().sum() for o in flat(module(x))), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), list(module.parameters()), allow_unused=True)

    with torch.backends.cudnn.flags(enabled=False):  # which has no second derivatives
        found = penalty()
        with recurve.backend("native"):
            expected = penalty()
    for a, b in zip(found, expected, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            *(zero.double() if g is None else g for g in (a, b)), rtol=0, atol=1e-10, check_device=False
        )
