"""Claims on Gabor functions: a fit finds the one that a kernel is, and explains little of noise."""

import numpy as np
import pytest

from ablations.gabor import fit_gabor, gabor, gabor_bank


def grid(side):
    return np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2, indexing="ij")


@pytest.mark.parametrize(
    ("angle", "wavelength", "phase", "width"), [(0.3, 5, 0.4, 2.0), (2.5, 4, 1.3, 1.5), (1.6, 9, 3, 3)]
)
def test_the_fit_of_a_gabor_function_is_that_function(angle, wavelength, phase, width):
    kernel = 0.1 + 0.7 * gabor(*grid(7), angle, wavelength, phase, width)
    fitted, explained = fit_gabor(kernel)
    np.testing.assert_allclose(fitted, kernel, atol=1e-3)
    assert explained > 0.9999


def test_the_fit_explains_the_bank_and_little_of_noise():
    bank = gabor_bank(8, 1, 7)[:, 0]
    noise = np.random.default_rng(0).normal(size=(10, 7, 7))
    assert min(fit_gabor(kernel)[1] for kernel in bank) > 0.999
    assert np.median([fit_gabor(kernel)[1] for kernel in noise]) < 0.5
