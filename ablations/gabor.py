"""Gabor functions: a bank of them as fixed kernels, and the one that fits a kernel best."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from scipy.optimize import least_squares


def gabor(
    rows: np.ndarray, columns: np.ndarray, angle: float, wavelength: float, phase: float, width: float
) -> np.ndarray:
    """cos(2 pi u / wavelength + phase) under a Gaussian of deviation `width`, where u = x cos(angle) + y sin(angle).

    Lengths are in pixels, from the kernel's centre (Daugman 1985, with a round envelope).
    """
    along = columns * np.cos(angle) + rows * np.sin(angle)
    return np.exp(-(rows**2 + columns**2) / (2 * width**2)) * np.cos(2 * np.pi * along / wavelength + phase)


def gabor_bank(outputs: int, inputs: int, side: int) -> np.ndarray:
    """Kernels (O, I, k, k) of mean zero and of the length that torch's own draw has on average.

    Orientations step through half a turn, edges (odd phase) and lines (even) taking turns; the wavelength is the
    kernel's side. All input channels get the same kernel.
    """
    rows, columns = _grid(side)
    length = math.sqrt(1 / (3 * inputs))  # torch draws uniformly between -1 and 1 over the square root of the fan-in
    bank = []
    for k in range(outputs):
        angle = np.pi * (k // 2) / math.ceil(outputs / 2)
        kernel = gabor(rows, columns, angle, side, (k % 2) * np.pi / 2, side / 3)
        kernel = kernel - kernel.mean()
        bank.append(kernel * length / np.linalg.norm(kernel))
    return np.stack(bank)[:, None].repeat(inputs, axis=1)


def fit_gabor(kernel: np.ndarray) -> tuple[np.ndarray, float]:
    """The scaled Gabor function with an offset that fits a kernel (k, k) best, and the share of variance it explains.

    Least squares from the best of 8 orientations, 4 wavelengths and 3 widths; a kernel of 3 x 3 has hardly more numbers
    than such a fit, and says nothing.
    """
    side = kernel.shape[0]
    rows, columns = _grid(side)
    target = (kernel - kernel.mean()).ravel()

    def missed(parameters: np.ndarray) -> np.ndarray:
        """What the best amplitudes of both phases and the best offset leave of the kernel."""
        angle, wavelength, width = parameters
        parts = [gabor(rows, columns, angle, wavelength, phase, width).ravel() for phase in (0.0, np.pi / 2)]
        basis = np.stack([*parts, np.ones(side * side)], axis=1)
        return target - basis @ np.linalg.lstsq(basis, target, rcond=None)[0]

    starts = product(
        np.linspace(0, np.pi, 8, endpoint=False), side * np.array([0.5, 0.75, 1, 2]), side / np.arange(2, 5)
    )
    start = min(starts, key=lambda parameters: float(np.square(missed(np.array(parameters))).sum()))
    low, high = [-np.pi, 2.0, side / 8], [2 * np.pi, 4.0 * side, float(side)]
    best = least_squares(missed, start, bounds=(low, high))
    return kernel - best.fun.reshape(kernel.shape), float(1 - np.square(best.fun).sum() / np.square(target).sum())


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (k, k), counted from the centre."""
    places = np.arange(side) - (side - 1) / 2
    rows, columns = np.meshgrid(places, places, indexing="ij")
    return rows, columns
