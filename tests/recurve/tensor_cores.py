"""Claims on float32 products on tensor cores (TF32), for a machine that has them or an emulation: see tests/cuda."""

import pytest
import torch
from cases import Sequence, reference, results
from cuda_convolution import NARROW, WIDE, compiled

import recurve
from recurve import ops

CASES = [
    Sequence(op, steps=steps, batch=batch, hidden=hidden, models=models, options=options)
    for op, options in (("lstm", {}), ("gru", {}), ("gru", {"reset": "before"}), ("rnn", {"leak": 0.3}))
    for steps, batch, hidden, models in ((6, 5, 7, None), (3, 19, 33, 2), (2, 18, 70, None))
]


@pytest.fixture(autouse=True)
def allow_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tf32_rounds_products_and_nothing_else(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    tensors = {name: t.float() for name, t in tensors.items()}
    with recurve.backend("fused"):
        found = results(getattr(ops, case.op), tensors, arguments)
    exact = results(reference(case), {name: t.double() for name, t in tensors.items()}, arguments)
    errors = [((found[name] - value).norm() / value.norm()).item() for name, value in exact.items()]
    assert max(errors) <= 2**-9
    assert max(errors) >= 2**-16, "no product was rounded to TF32"


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_tf32_rounds_the_products_of_wide_convolution_blocks(case, generator):
    tensors = {name: t.float() for name, t in case.tensors(generator).items()}
    found = results(compiled, tensors, case.options)
    exact = results(reference(case), {name: t.double() for name, t in tensors.items()}, case.options)
    for name, value in exact.items():
        error = ((found[name] - value).norm() / value.norm()).item()
        assert error <= 2**-9, name
        assert error >= 2**-16 or name == "gradient of bias", f"{name} was not rounded to TF32"


@pytest.mark.parametrize("case", NARROW[:1], ids=str)
def test_narrow_convolution_blocks_keep_the_precision_of_float32(case, generator):
    tensors = {name: t.float() for name, t in case.tensors(generator).items()}
    found = results(compiled, tensors, case.options)
    for name, value in results(reference(case), {n: t.double() for n, t in tensors.items()}, case.options).items():
        assert (found[name] - value).norm() <= 2**-20 * value.norm(), name


def test_without_leave_products_keep_the_precision_of_float32(generator, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    case = Sequence("gru", hidden=33, batch=17)
    tensors = {name: t.float() for name, t in case.tensors(generator).items()}
    with recurve.backend("fused"):
        found = results(ops.gru, tensors, {})
    for name, value in results(reference(case), {name: t.double() for name, t in tensors.items()}, {}).items():
        assert (found[name] - value).norm() <= 2**-20 * value.norm(), name
