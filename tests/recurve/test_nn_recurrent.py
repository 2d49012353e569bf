"""Claims on LSTM, GRU, RNN and their cells: whoever writes recurve.nn in place of torch.nn loses nothing."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from cases import assert_close, normal
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.testing._internal.common_modules import module_db

import recurve

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
every_layer = pytest.mark.parametrize("name", LAYERS)
every_module = pytest.mark.parametrize("name", LAYERS + CELLS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def twins(name, *args, **kwargs):
    """Ours and torch's module with the same parameters."""
    ours = getattr(recurve.nn, name)(*args, **kwargs)
    theirs = getattr(torch.nn, name)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def lengths(sizes):
    """As torch wants them to pack sequences, on whichever device those are."""
    return torch.tensor(sizes, device="cpu")


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return [t for part in value or () for t in tensors_in(part)]


def outcome(module, *args, **kwargs):
    """Outputs of a call and the gradients of its parameters and floating-point inputs, by name."""
    inputs = [t for t in tensors_in([*args, *kwargs.values()]) if t.is_floating_point()]
    for t in inputs:
        t.grad = None
        t.requires_grad_()
    module.zero_grad()
    outputs = tensors_in(module(*args, **kwargs))
    found = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    sum((o * torch.linspace(-1, 1.3, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in outputs).backward()
    found |= {f"gradient of {n}": p.grad.clone() for n, p in module.named_parameters()}
    return found | {f"gradient of input {i}": t.grad.clone() for i, t in enumerate(inputs) if t.grad is not None}


def samples(name, dtype, training):
    """Inputs that torch tests its own module with."""
    info = next(i for i in module_db if i.name == f"nn.{name}")
    return info.module_inputs_func(
        info, device=torch.get_default_device(), dtype=dtype, requires_grad=True, training=training
    )


def error_samples(name, dtype, training):
    info = next(i for i in module_db if i.name == f"nn.{name}")
    return info.module_error_inputs_func(
        info, device=torch.get_default_device(), dtype=dtype, requires_grad=True, training=training
    )


@every_mode
@every_dtype
@every_module
def test_every_input_of_torchs_own_tests_gives_the_same(name, dtype, training):
    count = 0
    for sample in samples(name, dtype, training):
        built, given = sample.constructor_input, sample.forward_input
        ours, theirs = twins(name, *built.args, **built.kwargs)
        expected = outcome(theirs.to(dtype).train(training), *given.args, **given.kwargs)
        found = outcome(ours.to(dtype).train(training), *given.args, **given.kwargs)
        assert_close(found, expected, 1e-10 if dtype == torch.float64 else 1e-5)
        count += 1
    assert count > 0


def raised(function):
    with pytest.raises(Exception) as caught:  # noqa: PT011 the type is what is compared
        function()
    return caught.value


@every_mode
@every_dtype
@every_module
def test_every_wrong_input_of_torchs_own_tests_raises_the_same(name, dtype, training):
    count = 0
    for sample in error_samples(name, dtype, training):
        built, given = sample.module_error_input.constructor_input, sample.module_error_input.forward_input

        def attempt(library, built=built, given=given):
            module = getattr(library, name)(*built.args, **built.kwargs)
            module(*given.args, **given.kwargs)

        ours, theirs = raised(lambda: attempt(recurve.nn)), raised(lambda: attempt(torch.nn))
        assert type(ours) is type(theirs)
        assert isinstance(ours, sample.error_type)
        assert str(ours) == str(theirs)
        count += 1
    assert count > 0


@pytest.mark.parametrize(
    ("bias", "bidirectional", "batch_first", "contiguous", "variable", "tensor_lengths"),
    list(itertools.product([False, True], repeat=6)),
    ids=lambda flag: "ny"[flag],
)
@every_layer
def test_the_grid_of_options_equals_torch(
    name, bias, bidirectional, batch_first, contiguous, variable, tensor_lengths, generator
):
    options = {"num_layers": 2, "bias": bias, "bidirectional": bidirectional, "batch_first": batch_first}
    ours, theirs = twins(name, 3, 5, **options, dtype=torch.float64)
    shape = (4, 6, 3) if batch_first else (6, 4, 3)
    x = normal(shape, generator) if contiguous else normal(shape[::-1], generator).permute(2, 1, 0)
    assert x.is_contiguous() == contiguous
    if variable:
        sizes = [6, 4, 3, 1]
        x = pack_padded_sequence(x, lengths(sizes) if tensor_lengths else sizes, batch_first)
    states = [normal((2 * (1 + bidirectional), 4, 5), generator) for _ in range(1 + (name == "LSTM"))]
    hx = tuple(states) if name == "LSTM" else states[0]
    assert_close(outcome(ours, x, hx), outcome(theirs, x, hx), 1e-10)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@every_layer
def test_packed_sequences_come_back_packed_and_in_order(name, enforce_sorted, generator):
    ours, theirs = twins(name, 3, 5, dtype=torch.float64)
    x = normal((6, 4, 3), generator)
    sizes = lengths([6, 4, 3, 1] if enforce_sorted else [3, 6, 1, 4])
    packed = pack_padded_sequence(x, sizes, enforce_sorted=enforce_sorted)
    y, _ = ours(packed)
    assert isinstance(y, PackedSequence)
    expected, _ = theirs(packed)
    for part in ("data", "batch_sizes", "sorted_indices", "unsorted_indices"):
        torch.testing.assert_close(getattr(y, part), getattr(expected, part), rtol=0, atol=1e-10)
    assert torch.equal(pad_packed_sequence(y)[1], sizes)


@pytest.mark.parametrize("given", [False, True], ids=["no_states", "states"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@every_layer
def test_unbatched_input_equals_torch(name, bidirectional, batch_first, given, generator):
    ours, theirs = twins(name, 3, 5, 2, bidirectional=bidirectional, batch_first=batch_first, dtype=torch.float64)
    states = tuple(normal((4 if bidirectional else 2, 5), generator) for _ in range(1 + (name == "LSTM")))
    hx = (states if name == "LSTM" else states[0]) if given else None
    x = normal((6, 3), generator)
    assert_close(outcome(ours, x, hx), outcome(theirs, x, hx), 1e-10)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("given", [False, True], ids=["no_states", "states"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("name", CELLS)
def test_cells_equal_torch(name, bias, given, batched, generator):
    ours, theirs = twins(name, 3, 17, bias, dtype=torch.float64)
    batch = (4,) if batched else ()
    states = tuple(normal((*batch, 17), generator) for _ in range(1 + (name == "LSTMCell")))
    hx = (states if name == "LSTMCell" else states[0]) if given else None
    x = normal((*batch, 3), generator)
    assert_close(outcome(ours, x, hx), outcome(theirs, x, hx), 1e-10)


@pytest.mark.parametrize("projected", [False, True], ids=["whole", "projected"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "both_ways"])
def test_projections_equal_torch(projected, bidirectional, generator):
    size = 2 if projected else 0
    ours, theirs = twins("LSTM", 3, 5, 2, proj_size=size, bidirectional=bidirectional, dtype=torch.float64)
    x = normal((6, 4, 3), generator)
    assert_close(outcome(ours, x), outcome(theirs, x), 1e-10)


@pytest.mark.parametrize("batch", [0, 1])
@every_layer
def test_tiny_batches_equal_torch(name, batch, generator):
    ours, theirs = twins(name, 3, 5, 2, bidirectional=True, dtype=torch.float64)
    x = normal((6, batch, 3), generator)
    assert_close(outcome(ours, x), outcome(theirs, x), 1e-10)


@every_layer
def test_dropout_acts_between_layers_in_training_only(name, generator):
    ours, theirs = twins(name, 3, 40, 2, dropout=0.5, dtype=torch.float64)
    x = normal((2, 30, 3), generator)
    torch.testing.assert_close(ours.eval()(x)[0], theirs.eval()(x)[0], rtol=0, atol=1e-10)
    ours.train()
    assert not torch.equal(ours(x)[0], ours(x)[0])
    first = ours(x)[1][0][0] if name == "LSTM" else ours(x)[1][0]
    torch.testing.assert_close(first, ours.eval()(x)[1][0][0] if name == "LSTM" else ours.eval()(x)[1][0])
    single = getattr(recurve.nn, name)(3, 40).train()
    assert torch.equal(single(x.float())[0], single(x.float())[0])


@every_layer
def test_full_dropout_leaves_the_second_layer_without_input(name, generator):
    ours, theirs = twins(name, 3, 5, 2, dropout=1.0, dtype=torch.float64)
    x = normal((4, 3, 3), generator)
    assert_close(outcome(ours, x), outcome(theirs, x), 1e-10)


@every_module
def test_state_dicts_load_both_ways(name):
    options = {} if name in CELLS else {"num_layers": 2, "bidirectional": True}
    ours, theirs = getattr(recurve.nn, name)(3, 5, **options), getattr(torch.nn, name)(3, 5, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for (a, p), (b, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert a == b
        assert torch.equal(p, q)


@every_module
def test_the_same_seed_initialises_as_torch_does(name):
    torch.manual_seed(7)
    ours = getattr(recurve.nn, name)(3, 5)
    torch.manual_seed(7)
    theirs = getattr(torch.nn, name)(3, 5)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["copy", "deepcopy", "pickle"],
)
@every_module
def test_copies_give_the_same(name, copied, generator):
    module = getattr(recurve.nn, name)(3, 5, dtype=torch.float64)
    x = normal((4, 3) if name in CELLS else (6, 4, 3), generator)
    assert_close(outcome(copied(module), x), outcome(module, x), 0)


@every_module
def test_saved_modules_load(name, generator):
    module = getattr(recurve.nn, name)(3, 5, dtype=torch.float64)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    x = normal((4, 3) if name in CELLS else (6, 4, 3), generator)
    assert_close(outcome(torch.load(file, weights_only=False), x), outcome(module, x), 0)


def test_a_third_state_of_an_lstm_raises_what_torch_raises():
    for module in twins("LSTM", 3, 5):
        with pytest.raises(RuntimeError, match="expects two hidden states"):
            module(torch.zeros(6, 4, 3), (torch.zeros(1, 4, 5),) * 3)


@every_module
def test_repr_is_that_of_torch(name):
    options = {"bias": False} | ({} if name in CELLS else {"num_layers": 2, "bidirectional": True, "dropout": 0.5})
    ours, theirs = twins(name, 3, 5, **options)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("name", ["RNN", "RNNCell"])
def test_both_nonlinearities_equal_torch(name, nonlinearity, generator):
    ours, theirs = twins(name, 3, 5, nonlinearity=nonlinearity, dtype=torch.float64)
    x = normal((4, 3) if name == "RNNCell" else (6, 4, 3), generator)
    assert_close(outcome(ours, x), outcome(theirs, x), 1e-10)
    assert ours.nonlinearity == theirs.nonlinearity


@every_layer
def test_positional_arguments_mean_what_they_mean_in_torch(name, generator):
    nonlinearity = ("relu",) if name == "RNN" else ()
    ours, theirs = twins(name, 3, 5, 2, *nonlinearity, False, True, 0.0, True)
    assert repr(ours) == repr(theirs)
    x = normal((4, 6, 3), generator).float()
    assert_close(outcome(ours, x), outcome(theirs, x), 1e-5)


@every_layer
def test_parameters_may_be_moved_converted_and_flattened(name, generator):
    module = getattr(recurve.nn, name)(3, 5)
    assert module.flatten_parameters() is None
    assert {p.dtype for p in module.double().parameters()} == {torch.float64}
    assert module(normal((2, 2, 3), generator))[0].dtype == torch.float64
    assert module.to("meta").weight_ih_l0.is_meta
    assert getattr(recurve.nn, name)(3, 5, device="meta").weight_ih_l0.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_module
def test_half_precision_is_about_as_accurate_as_torch(name, dtype, generator):
    """Over some draws together, relative L2 error at most twice torch's own.

    Not number by number: torch's error of a number is zero now and then, by luck.
    """
    runs = []
    for _ in range(4):
        ours, theirs = twins(name, 20, 33, dtype=dtype)
        x = normal((4, 20) if name in CELLS else (6, 4, 20), generator).to(dtype)
        exact = outcome(copy.deepcopy(theirs).double(), x.double())
        runs.append((outcome(ours, x.clone()), outcome(theirs, x.clone()), exact))
    for key in runs[0][2]:
        assert runs[0][0][key].dtype == dtype, key
        found, native, value = (torch.stack([run[i][key].double() for run in runs]) for i in range(3))
        assert (found - value).norm() <= 2 * (native - value).norm(), key


@every_layer
def test_mixed_dtypes_raise_what_torch_raises(name):
    ours, theirs = twins(name, 3, 5)
    x = torch.zeros(2, 2, 3, dtype=torch.bfloat16)
    with pytest.raises(Exception) as expected:  # noqa: PT011
        theirs(x)
    with pytest.raises(type(expected.value), match="dtype"):
        ours(x)


@every_module
def test_autocast_equals_torch(name, generator):
    device = torch.get_default_device().type
    if name == "LSTM" and device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("on this processor torch's own LSTM has no bfloat16")
    ours, theirs = twins(name, 3, 5)
    x = normal((4, 3) if name in CELLS else (6, 4, 3), generator).float()
    with torch.autocast(device, torch.bfloat16):
        found, expected = tensors_in(ours(x)), tensors_in(theirs(x))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2)


@every_layer
def test_packed_sequences_under_autocast_equal_torch(name, generator):
    ours, theirs = twins(name, 3, 5)
    packed = pack_padded_sequence(normal((6, 4, 3), generator).float(), lengths([6, 4, 3, 1]))
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        found, expected = tensors_in(ours(packed)), tensors_in(theirs(packed))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2, check_dtype=True)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_gru_that_resets_before_the_product_equals_its_reference(bidirectional, packed, generator):
    module = recurve.nn.GRU(3, 9, 2, bidirectional=bidirectional, reset="before", dtype=torch.float64)
    x, sizes = normal((6, 4, 3), generator), lengths([6, 4, 3, 1])
    given = pack_padded_sequence(x, sizes) if packed else x
    found = outcome(module, given)
    with recurve.backend("native"):
        expected = outcome(module, given)
    assert_close(found, expected, 1e-10)
    assert "reset='before'" in repr(module)
    assert copy.deepcopy(module).reset == "before"


def test_a_gru_cell_that_resets_before_the_product_is_one_step_of_the_layer(generator):
    layer = recurve.nn.GRU(3, 5, reset="before", dtype=torch.float64)
    cell = recurve.nn.GRUCell(3, 5, reset="before", dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    x, h = normal((4, 3), generator), normal((4, 5), generator)
    torch.testing.assert_close(cell(x, h), layer(x[None], h[None])[0][0])


@pytest.mark.parametrize("make", [recurve.nn.GRU, recurve.nn.GRUCell])
def test_an_unknown_place_of_the_reset_is_refused(make):
    with pytest.raises(ValueError, match="reset 'never' is unknown; allowed: after, before"):
        make(3, 5, reset="never")


@every_layer
def test_dropout_of_packed_sequences_draws_torchs_random_numbers_on_the_cpu(name, generator):
    ours, theirs = twins(name, 3, 5, 2, dropout=0.5, dtype=torch.float64)
    packed = pack_padded_sequence(normal((6, 4, 3), generator), lengths([6, 4, 3, 1]))
    outputs = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        outputs.append(module(packed)[0].data)
    torch.testing.assert_close(*outputs)


def wrong_calls(name):
    """Calls that torch refuses: arguments of the module, then a function from it and torch to the call."""
    states = 2 if name == "LSTM" else 1

    def state(*shape):
        return (torch.zeros(shape),) * 2 if states == 2 else torch.zeros(shape)

    yield "no steps", lambda m: m(torch.zeros(0, 2, 3))
    yield "one dimension", lambda m: m(torch.zeros(3))
    yield "four dimensions", lambda m: m(torch.zeros(2, 2, 2, 3))
    yield "other input size", lambda m: m(torch.zeros(2, 2, 4))
    yield "other hidden size", lambda m: m(torch.zeros(2, 2, 3), state(1, 2, 6))
    yield "other batch", lambda m: m(torch.zeros(2, 2, 3), state(1, 3, 5))
    yield "other layers", lambda m: m(torch.zeros(2, 2, 3), state(2, 2, 5))
    yield "flat state", lambda m: m(torch.zeros(2, 2, 3), state(1, 5))
    yield "batched state of unbatched input", lambda m: m(torch.zeros(2, 3), state(1, 2, 5))
    yield "integers", lambda m: m(torch.zeros(2, 2, 3, dtype=torch.long))
    yield "other dtype", lambda m: m(torch.zeros(2, 2, 3, dtype=torch.float64))
    yield "other dtype of states", lambda m: m(torch.zeros(2, 2, 3), state(1, 2, 5) and _double(state(1, 2, 5)))
    yield "a list", lambda m: m([[1.0]])
    yield "nothing", lambda m: m()


def _double(state):
    return tuple(s.double() for s in state) if isinstance(state, tuple) else state.double()


@pytest.mark.parametrize("what", [what for what, _ in wrong_calls("LSTM")])
@every_layer
def test_wrong_calls_raise_what_torch_raises(name, what):
    ours, theirs = twins(name, 3, 5)
    call = dict(wrong_calls(name))[what]
    found, expected = raised(lambda: call(ours)), raised(lambda: call(theirs))
    assert type(found) is type(expected), f"ours: {found!r}, torch's: {expected!r}"


WRONG_ARGUMENTS = [
    {"hidden_size": 0},
    {"hidden_size": -1},
    {"hidden_size": 2.5},
    {"num_layers": 0},
    {"dropout": 1.5},
    {"dropout": "much"},
    {"proj_size": 7},
    {"proj_size": -1},
    {"unknown": 1},
    {"nonlinearity": "elu"},
]


@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS, ids=str)
@every_layer
def test_wrong_arguments_raise_what_torch_raises(name, wrong):
    arguments = {"input_size": 3, "hidden_size": 5} | wrong
    found = raised(lambda: getattr(recurve.nn, name)(**arguments))
    expected = raised(lambda: getattr(torch.nn, name)(**arguments))
    assert type(found) is type(expected), f"ours: {found!r}, torch's: {expected!r}"
    if not isinstance(expected, TypeError):
        assert str(found) == str(expected)


@pytest.mark.parametrize(
    ("shape", "hx"),
    [
        *itertools.product([(4, 4), (2, 2, 2)], [None, (3, 5), (4, 6), (2, 4, 5)]),
        *itertools.product([(3,)], [(3, 5), (4, 6), (2, 4, 5)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", CELLS)
def test_wrong_calls_of_cells_raise_what_torch_raises(name, shape, hx):
    ours, theirs = twins(name, 3, 5)
    state = None if hx is None else (torch.zeros(hx),) * 2 if name == "LSTMCell" else torch.zeros(hx)
    found = raised(lambda: ours(torch.zeros(shape), state))
    expected = raised(lambda: theirs(torch.zeros(shape), state))
    assert type(found) is type(expected), f"ours: {found!r}, torch's: {expected!r}"


@every_layer
def test_training_reduces_the_loss_as_torchs_module_does(name, generator):
    ours, theirs = twins(name, 1, 8, 2, dtype=torch.float64)
    x = normal((7, 16, 1), generator)
    losses = []
    for module in (ours, theirs):
        optimizer = torch.optim.Adam(module.parameters(), 1e-2)
        for _ in range(15):
            optimizer.zero_grad()
            loss = (module(x)[0][-1].mean(-1) - x.sum(0)[:, 0].tanh()).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-8)
