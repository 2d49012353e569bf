"""Claims on lstm, gru and rnn: equal to torch.nn and to the references, outputs and every gradient."""

import itertools
from dataclasses import replace

import pytest
import torch
from cases import (
    STATES,
    Sequence,
    assert_as_accurate,
    assert_close,
    assert_same,
    needs_kernels,
    normal,
    reference,
    results,
    strided,
)
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import recurve
from recurve import ops

OPS = ("lstm", "gru", "rnn")
BEFORE = {"reset": "before"}
RNN_OPTIONS = [
    {"activation": activation, "leak": leak} for activation in ("tanh", "relu", "sigmoid") for leak in (1.0, 0.3)
]


def cases():
    for op in OPS:
        plain = Sequence(op)
        yield plain
        yield from (replace(plain, hidden=hidden, batch=5) for hidden in (1, 15, 16, 17, 33, 65, 129))
        yield from (replace(plain, batch=batch, hidden=9) for batch in (0, 1, 7, 13, 101))
        yield from (replace(plain, inputs=inputs) for inputs in (1, 40, 300))
        yield replace(plain, steps=1)
        yield replace(plain, steps=23, batch=2, hidden=3)
        for inputs, hidden in ((20, 9), (9, 20), (3, 33)):  # weight gradients sum over many rows in tiles of any height
            yield replace(plain, steps=20, batch=9, inputs=inputs, hidden=hidden)
        # A batch in parts that sum by themselves, over more steps than are summed at once.
        long = replace(plain, steps=200 if op == "rnn" else 60, batch=40, hidden=37)
        yield from (replace(long, reverse=reverse) for reverse in (False, True))
        yield replace(long, models=2, shared=True, inputs=9)
        yield replace(long, lengths=True, resets=True)
        yield replace(plain, models=9, batch=5, hidden=9)
        for flags in itertools.product([False, True], repeat=4):
            names = ("no_bias", "lengths", "resets", "reverse")
            yield replace(plain, steps=6, batch=6, **dict(zip(names, flags, strict=True)))
        yield replace(plain, steps=1, lengths=True, resets=True, reverse=True)
        yield replace(plain, hidden=130, batch=14, lengths=True, resets=True, reverse=True)
        for shared, reverse in itertools.product([False, True], repeat=2):
            yield replace(plain, models=3, shared=shared, reverse=reverse, hidden=17)
        yield replace(plain, models=1, batch=2)
        yield replace(plain, models=4, batch=0)
        yield replace(plain, models=2, shared=True, no_bias=True, lengths=True, resets=True)
        yield replace(plain, batch=9, inputs=40, no_bias=True)
        yield replace(plain, batch=9, inputs=300, hidden=129)  # too large for W x beside U h
        yield from (replace(plain, batch=9, models=3, hidden=17, shared=shared) for shared in (False, True))
    for flags in itertools.product([False, True], repeat=4):
        names = ("no_bias", "lengths", "resets", "reverse")
        yield Sequence("gru", steps=6, batch=9, **dict(zip(names, flags, strict=True)), options=BEFORE)
    for hidden, models in itertools.product((1, 16, 33, 129), (None, 3)):
        yield Sequence("gru", hidden=hidden, models=models, shared=models is not None, options=BEFORE)
    yield from (Sequence("gru", batch=batch, options=BEFORE) for batch in (0, 1, 13, 101))
    yield from (Sequence("gru", steps=60, batch=40, hidden=37, reverse=r, options=BEFORE) for r in (False, True))
    for options in RNN_OPTIONS:
        yield Sequence("rnn", options=options)
        yield Sequence("rnn", hidden=37, batch=6, models=2, lengths=True, resets=True, reverse=True, options=options)


CASES = list({str(case): case for case in cases()}.values())
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_op = pytest.mark.parametrize("op", OPS)


@every_case
def test_float64_equals_the_reference(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    with recurve.backend("fused"):
        found = results(getattr(ops, case.op), tensors, arguments)
    assert_close(found, results(reference(case), tensors, arguments), 1e-10)


@every_case
def test_float32_is_about_as_accurate_as_the_native_op(case, generator):
    numbers = case.batch * case.hidden
    assert_as_accurate(getattr(ops, case.op), case, generator, draws=max(4, 300 // numbers) if numbers else 1)


@every_op
def test_float32_is_about_as_accurate_as_the_native_op_over_many_steps(op, generator):
    assert_as_accurate(getattr(ops, op), Sequence(op, steps=1000, batch=9, hidden=5), generator, draws=1)


def test_float32_is_about_as_accurate_as_the_native_op_with_many_units(generator):
    assert_as_accurate(ops.lstm, Sequence("lstm", steps=10, batch=8, hidden=1024), generator, draws=1)


SIXTEEN_BITS = [
    Sequence(op, steps=9, batch=batch, hidden=hidden, models=models, options=options)
    for op, options in (("lstm", {}), ("gru", {}), ("gru", BEFORE), ("rnn", {"leak": 0.3}))
    for batch, hidden, models in ((5, 7, None), (19, 33, 2), (18, 70, None))
] + [Sequence(op, steps=6, batch=6, lengths=True, resets=True, reverse=True) for op in OPS]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SIXTEEN_BITS, ids=str)
def test_16_bit_results_are_about_as_accurate_as_the_native_op(case, dtype, generator):
    assert_as_accurate(getattr(ops, case.op), case, generator, draws=3, dtype=dtype)


def torch_module(case, tensors):
    """The module of torch.nn with these weights, in both directions if the case is reversed."""
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[case.op]
    module = kind(case.inputs, case.hidden, bias=not case.no_bias, bidirectional=case.reverse, dtype=torch.float64)
    for suffix in ("_l0", "_l0_reverse") if case.reverse else ("_l0",):
        for ours, theirs in (("w_ih", "weight_ih"), ("w_hh", "weight_hh"), ("b_ih", "bias_ih"), ("b_hh", "bias_hh")):
            if ours in tensors:
                getattr(module, theirs + suffix).data.copy_(tensors[ours])
    return module


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("no_bias", [False, True], ids=["bias", "no_bias"])
@every_op
def test_float64_equals_torch_nn(op, no_bias, reverse, lengths, generator):
    case = Sequence(op, steps=6, batch=4, no_bias=no_bias, reverse=reverse)
    tensors = case.tensors(generator)
    arguments = case.arguments(generator)
    module = torch_module(case, tensors)
    direction = slice(case.hidden, None) if reverse else slice(0, case.hidden)
    layer = 1 if reverse else 0
    sizes = torch.tensor([6, 5, 2, 1], device="cpu")

    def native(x, h0, c0=None, **weights):
        both = tuple(s.repeat(2 if reverse else 1, 1, 1) for s in (h0, c0) if s is not None)
        sequence = pack_padded_sequence(x, sizes) if lengths else x
        names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
        named = {names[k] + ("_l0_reverse" if reverse else "_l0"): v for k, v in weights.items()}
        y, last = torch.func.functional_call(module, named, (sequence, both if op == "lstm" else both[0]))
        y = pad_packed_sequence(y)[0] if lengths else y
        return y[..., direction], *(s[layer] for s in (last if op == "lstm" else (last,)))

    if lengths:
        arguments["lengths"] = sizes.to(torch.get_default_device())
    with recurve.backend("fused"):
        found = results(getattr(ops, op), tensors, arguments)
    assert_close(found, results(native, tensors, arguments={}), 1e-10)


@pytest.mark.parametrize("models", [None, 2], ids=["single", "ensemble"])
@every_op
def test_any_subset_of_inputs_may_require_gradients(op, models, generator):
    case = Sequence(op, models=models, lengths=True, resets=True)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    full = results(reference(case), tensors, arguments)
    for size in range(len(tensors) + 1):
        for wanted in itertools.combinations(tensors, size):
            with recurve.backend("fused"):
                found = results(getattr(ops, op), tensors, arguments, wanted=wanted)
            assert_close(found, {name: full[name] for name in found}, 1e-10)
            assert len(found) == len(full) - len(tensors) + len(wanted)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@every_op
def test_gradients_from_any_subset_of_outputs(op, reverse, generator):
    case = Sequence(op, lengths=True, resets=True, reverse=reverse)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    outputs = range(1 + len(STATES[op]))
    for size in outputs:
        for used in itertools.combinations(outputs, size + 1):
            with recurve.backend("fused"):
                found = results(getattr(ops, op), tensors, arguments, used=used)
            assert_close(found, results(reference(case), tensors, arguments, used=used), 1e-10)


@pytest.mark.parametrize("models", [None, 2], ids=["single", "ensemble"])
@every_op
def test_strides_and_offsets_of_inputs_do_not_matter(op, models, generator):
    case = Sequence(op, models=models, lengths=True, resets=True)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    scattered = {name: strided(t) for name, t in tensors.items()}
    assert not any(t.is_contiguous() for t in scattered.values())
    apart = {name: strided(a) if isinstance(a, torch.Tensor) else a for name, a in arguments.items()}
    with recurve.backend("fused"):
        assert_same(
            results(getattr(ops, op), scattered, apart),
            results(getattr(ops, op), tensors, arguments),
        )


@every_op
def test_expanded_inputs_give_summed_gradients(op, generator):
    case = Sequence(op, batch=4)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    tensors["x"] = tensors["x"][:, :1]
    for name in STATES[op]:
        tensors[name] = tensors[name][:1]

    def spread(function):
        def call(x, **others):
            states = {name: others.pop(name).expand(4, -1) for name in STATES[op]}
            return function(x.expand(-1, 4, -1), **states, **others)

        return call

    with recurve.backend("fused"):
        found = results(spread(getattr(ops, op)), tensors, arguments)
    assert_close(found, results(spread(reference(case)), tensors, arguments), 1e-10)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@every_op
def test_strided_and_expanded_output_gradients(op, reverse, generator):
    case = Sequence(op, reverse=reverse)
    tensors, arguments = case.tensors(generator), case.arguments(generator)

    def summed(function):
        def call(**given):
            y, *last = function(**given)
            return y.sum() + y.mT[..., ::2].sin().sum(), *(s.sum() for s in last)

        return call

    with recurve.backend("fused"):
        found = results(summed(getattr(ops, op)), tensors, arguments)
    assert_close(found, results(summed(reference(case)), tensors, arguments), 1e-10)


def ensemble_and_its_models(op, generator):
    """Outputs of three models together, and one by one."""
    case = Sequence(op, models=3, hidden=19, batch=5)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    with recurve.backend("fused"):
        together = results(getattr(ops, op), tensors, arguments, wanted=())
        alone = [
            results(getattr(ops, op), {n: t[e] for n, t in tensors.items()}, arguments, wanted=()) for e in range(3)
        ]
    return together, {name: torch.stack([a[name] for a in alone]) for name in together}


@every_op
def test_an_ensemble_equals_its_models_one_by_one(op, generator):
    assert_close(*ensemble_and_its_models(op, generator), 1e-14)


@every_op
def test_an_ensemble_equals_its_models_bit_for_bit_on_the_cpu(op, generator):
    assert_same(*ensemble_and_its_models(op, generator))


@every_op
def test_own_input_with_shared_states_and_biases(op, generator):
    case = Sequence(op, models=3)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    for name in (*STATES[op], "w_hh", "b_ih", "b_hh"):
        tensors[name] = tensors[name][0]
    with recurve.backend("fused"):
        found = results(getattr(ops, op), tensors, arguments)
    assert_close(found, results(reference(case), tensors, arguments), 1e-10)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@every_op
def test_a_reset_starts_the_sequence_anew(op, reverse, generator):
    case = Sequence(op, steps=7, reverse=reverse)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    resets = torch.zeros(7, case.batch, dtype=torch.bool)
    resets[3] = True
    anew = tensors | {name: torch.zeros_like(tensors[name]) for name in STATES[op]}
    anew["x"] = tensors["x"][:4] if reverse else tensors["x"][3:]
    with recurve.backend("fused"):
        whole = getattr(ops, op)(**tensors, **arguments, resets=resets)
        part = getattr(ops, op)(**anew, **arguments)
    torch.testing.assert_close(whole[0][:4] if reverse else whole[0][3:], part[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(whole[1:], part[1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@every_op
def test_a_sequence_of_some_length_equals_the_same_cut_short(op, reverse, generator):
    case = Sequence(op, steps=6, batch=7, reverse=reverse)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    with recurve.backend("fused"):
        y, *last = getattr(ops, op)(**tensors, **arguments, lengths=torch.arange(7))
        for b in range(1, 7):
            short = tensors | {"x": tensors["x"][:b, b : b + 1]}
            short |= {name: tensors[name][b : b + 1] for name in STATES[op]}
            y_b, *last_b = getattr(ops, op)(**short, **arguments)
            torch.testing.assert_close(y[:b, b : b + 1], y_b, rtol=0, atol=1e-12)
            assert torch.equal(y[b:, b], torch.zeros(6 - b, case.hidden, dtype=torch.float64))
            torch.testing.assert_close([s[b : b + 1] for s in last], last_b, rtol=0, atol=1e-12)
    for name, state in zip(STATES[op], last, strict=True):
        assert torch.equal(state[0], tensors[name][0])


@every_op
def test_what_lies_past_a_length_changes_nothing(op, generator):
    case = Sequence(op, steps=4, batch=3)
    tensors, lengths = case.tensors(generator), torch.tensor([4, 2, 0])
    past = torch.arange(4)[:, None] >= lengths
    other = tensors | {"x": torch.where(past.unsqueeze(-1), 1e3 * normal(tensors["x"].shape, generator), tensors["x"])}
    with recurve.backend("fused"):
        found = results(getattr(ops, op), other, {"lengths": lengths})
        expected = results(getattr(ops, op), tensors, {"lengths": lengths})
    assert_same(found, expected)
    assert not found["gradient of x"][past].any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@every_op
def test_lengths_may_be_any_integers(op, dtype, generator):
    case = Sequence(op)
    tensors, lengths = case.tensors(generator), torch.tensor([5, 1, 3])
    with recurve.backend("fused"):
        assert_same(
            results(getattr(ops, op), tensors, {"lengths": lengths.to(dtype)}),
            results(getattr(ops, op), tensors, {"lengths": lengths}),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_op
def test_saturated_gates_stay_finite_and_right(op, dtype, generator):
    case = Sequence(op, steps=4, hidden=20)
    tensors = {name: (100 * t if name == "x" else t).to(dtype) for name, t in case.tensors(generator).items()}
    with recurve.backend("fused"):
        found = results(getattr(ops, op), tensors, {})
    exact = results(reference(case), {name: t.double() for name, t in tensors.items()}, {})
    for name, value in exact.items():
        scale = max(1, value.abs().max().item())
        assert (found[name] - value).abs().max() <= (1e-12 if dtype == torch.float64 else 1e-5) * scale, name


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@every_op
def test_not_a_number_and_infinity_spread_as_in_torch(op, value, generator):
    case = Sequence(op, steps=4, hidden=20)
    tensors = case.tensors(generator)
    tensors["x"][1, 1, 2] = value
    with recurve.backend("fused"):
        found = results(getattr(ops, op), tensors, {}, wanted=())
    for name, expected in results(reference(case), tensors, {}, wanted=()).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-12, equal_nan=True)


@every_op
def test_no_gradient_mode_gives_the_same_outputs(op, generator):
    case = Sequence(op, hidden=21, lengths=True, resets=True, reverse=True)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    with recurve.backend("fused"):
        kept = getattr(ops, op)(**{n: t.requires_grad_() for n, t in tensors.items()}, **arguments)
        with torch.no_grad():
            outputs = getattr(ops, op)(**tensors, **arguments)
    for a, b in zip(kept, outputs, strict=True):
        assert a.requires_grad
        assert not b.requires_grad
        assert torch.equal(a, b)


@every_op
def test_inputs_are_left_as_they_are(op, generator):
    case = Sequence(op, lengths=True, resets=True)
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    before = {name: t.clone() for name, t in (tensors | arguments).items() if isinstance(t, torch.Tensor)}
    with recurve.backend("fused"):
        results(getattr(ops, op), tensors, arguments)
    for name, value in before.items():
        assert torch.equal((tensors | arguments)[name], value), name


WRONG = {
    "x of two dimensions": ({"x": (3, 4)}, r"x must be \(T, B, I\)"),
    "no steps": ({"x": (0, 3, 4)}, "Expected sequence length to be larger than 0"),
    "other input size": ({"x": (5, 3, 6)}, r"w_ih must be \[\d+, 6\]"),
    "other batch of h0": ({"h0": (2, 7)}, r"h0 must be \[3, 7\]"),
    "other hidden size of w_hh": ({"w_hh": (28, 6)}, r"w_hh must be"),
    "other gates of w_ih": ({"w_ih": (5, 4)}, r"w_ih must be"),
    "bias of wrong size": ({"b_hh": (6,)}, r"b_hh must be"),
    "ensemble of h0 alone": ({"h0": (2, 3, 7)}, r"no ensemble axis|h0 must be \[3, 7\], got"),
    "ensemble of x alone": ({"x": (2, 5, 3, 4)}, r"leading E"),
}


@pytest.mark.parametrize("backend", ["fused", "native"])
@pytest.mark.parametrize("what", WRONG)
@every_op
@needs_kernels
def test_wrong_shapes_are_named(op, what, backend, generator):
    shapes, message = WRONG[what]
    tensors = Sequence(op).tensors(generator) | {name: normal(shape, generator) for name, shape in shapes.items()}
    with recurve.backend(backend), pytest.raises(RuntimeError, match=message):
        getattr(ops, op)(**tensors)


@pytest.mark.parametrize("shapes", [{"h0": (2, 7)}, {"h0": (1, 7)}, {"x": (3, 1, 3, 4)}, {"c0": (1, 7)}], ids=str)
@every_op
def test_a_single_step_of_wrong_shapes_never_reaches_torchs_own_op(op, shapes, generator):
    """On which torch relies on its modules to have looked: it writes past what is too small."""
    tensors = Sequence(op, steps=1).tensors(generator)
    wrong = {name: normal(shape, generator) for name, shape in shapes.items() if name in tensors}
    if wrong:
        with pytest.raises(RuntimeError, match=f"{op}: ({'|'.join(wrong)}) must be"):
            getattr(ops, op)(**tensors | wrong)


@pytest.mark.parametrize("name", ["h0", "w_ih", "w_hh", "b_ih", "b_hh"])
@every_op
@needs_kernels
def test_mixed_dtypes_are_refused_by_name(op, name, generator):
    tensors = Sequence(op).tensors(generator)
    tensors[name] = tensors[name].float()
    with recurve.backend("fused"), pytest.raises(RuntimeError, match=f"{name} is Float, x is Double; convert one"):
        getattr(ops, op)(**tensors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": torch.tensor([6, 1, 1])}, r"lengths must lie in \[0, 5\], got 1 to 6"),
        ({"lengths": torch.tensor([-1, 1, 1])}, r"lengths must lie in \[0, 5\], got -1 to 1"),
        ({"lengths": torch.tensor([1, 1])}, r"lengths must be \(B,\) = \(3,\)"),
        ({"lengths": torch.tensor([1.0, 1, 1])}, "of an integer type"),
        ({"resets": torch.zeros(5, 2, dtype=torch.bool)}, r"resets must be \(T, B\) = \(5, 3\) of bool"),
        ({"resets": torch.zeros(5, 3)}, "of bool"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value[:30],
)
@pytest.mark.parametrize("backend", ["fused", "native"])
@every_op
@needs_kernels
def test_wrong_lengths_and_resets_are_named(op, backend, arguments, message, generator):
    with recurve.backend(backend), pytest.raises(RuntimeError, match=message):
        getattr(ops, op)(**Sequence(op).tensors(generator), **arguments)


@pytest.mark.parametrize(
    ("shapes", "message"), [WRONG["no steps"], ({"h0": (1, 7)}, r"h0 must be \[3, 7\], got \[1, 7\]")]
)
@every_op
def test_without_kernels_wrong_shapes_are_not_broadcast(op, shapes, message, generator):
    tensors = Sequence(op).tensors(generator) | {name: normal(shape, generator) for name, shape in shapes.items()}
    lengths = torch.tensor([0, 0, 0])
    with recurve.backend("native"), pytest.raises(RuntimeError, match=message):
        getattr(ops, op)(**tensors, lengths=lengths)


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("reverse", [False, True])
@every_op
def test_what_lies_behind_the_end_of_a_sequence_may_be_anything(op, reverse, backend, generator):
    case = Sequence(op)
    tensors = case.tensors(generator)
    lengths = torch.tensor([case.steps, 2, 0])
    spoilt = tensors["x"].clone()
    for row, length in enumerate(lengths):
        spoilt[length:, row] = torch.nan
    arguments = {"lengths": lengths, "reverse": reverse}
    with recurve.backend(backend):
        clean = results(getattr(ops, op), tensors, arguments)
        found = results(getattr(ops, op), tensors | {"x": spoilt}, arguments)
    assert_close(found, clean, 0)


@pytest.mark.parametrize("name", ["h0", "w_ih"])
@every_op
def test_a_tensor_without_values_is_not_taken_for_one(op, name, generator):
    tensors = Sequence(op).tensors(generator)
    with pytest.raises(RuntimeError, match=f"{name} is on meta"):
        getattr(ops, op)(**tensors | {name: tensors[name].to("meta")})


@every_op
@needs_kernels
def test_one_bias_without_the_other_is_refused(op, generator):
    tensors = Sequence(op).tensors(generator)
    del tensors["b_hh"]
    with recurve.backend("fused"), pytest.raises(RuntimeError, match="both biases or neither"):
        getattr(ops, op)(**tensors)


def test_an_unknown_activation_names_the_allowed_ones(generator):
    with pytest.raises(ValueError, match="'elu' is unknown; allowed: tanh, relu, sigmoid"):
        ops.rnn(**Sequence("rnn").tensors(generator), activation="elu")


def test_an_unknown_place_of_the_reset_names_the_allowed_ones(generator):
    with pytest.raises(ValueError, match="reset 'beside' is unknown; allowed: after, before"):
        ops.gru(**Sequence("gru").tensors(generator), reset="beside")


def test_the_place_of_the_reset_changes_the_function_and_without_reset_it_does_not(generator):
    tensors = Sequence("gru").tensors(generator)
    after, _ = ops.gru(**tensors)
    before, _ = ops.gru(**tensors, reset="before")
    assert (after - before).abs().max() > 1e-3
    open_gate = tensors | {"b_ih": tensors["b_ih"].clone()}
    open_gate["b_ih"][:7] = 1e3  # r is one
    torch.testing.assert_close(ops.gru(**open_gate)[0], ops.gru(**open_gate, reset="before")[0])


def test_the_gru_of_lectures_resets_before_the_product_and_turns_the_sign_of_z(generator):
    """h = (1 - z) h + z n, with n = tanh(W x + U (r h)), as in Cho et al. (2014) and most lectures."""
    tensors = Sequence("gru").tensors(generator)
    hidden = tensors["h0"].shape[-1]
    turned = {
        name: torch.cat([t[:hidden], -t[hidden : 2 * hidden], t[2 * hidden :]]) if name[:2] in ("w_", "b_") else t
        for name, t in tensors.items()
    }
    w, u, b = tensors["w_ih"], tensors["w_hh"], tensors["b_ih"] + tensors["b_hh"]
    h, states = tensors["h0"], []
    for x in tensors["x"]:
        gates = x @ w[: 2 * hidden].T + h @ u[: 2 * hidden].T + b[: 2 * hidden]
        r, z = gates.sigmoid().chunk(2, dim=-1)
        n = torch.tanh(x @ w[2 * hidden :].T + (r * h) @ u[2 * hidden :].T + b[2 * hidden :])
        h = (1 - z) * h + z * n
        states.append(h)
    torch.testing.assert_close(ops.gru(**turned, reset="before")[0], torch.stack(states))


@pytest.mark.parametrize("leak", [0.0, -0.5, 1.5, float("nan")])
def test_a_leak_outside_its_range_is_named(leak, generator):
    with pytest.raises(ValueError, match=r"leak must lie in \(0, 1\], got"):
        ops.rnn(**Sequence("rnn").tensors(generator), leak=leak)
