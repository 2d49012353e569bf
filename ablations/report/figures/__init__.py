"""Every figure of the report: a function of a table and a declaration that returns a matplotlib Figure.

`declare` makes the declaration for a table of your own.
"""

from ablations.report.figures.algorithms import algorithm_table, exactness, winners
from ablations.report.figures.comparisons import forest, levels
from ablations.report.figures.drawings import draw
from ablations.report.figures.epidemics import (
    compartment_table,
    compartments,
    coverage,
    coverage_table,
    history_by_noise,
    history_table,
    horizon_table,
    origin_table,
    peak_by_origin,
    score_by_horizon,
)
from ablations.report.figures.gradients import gradient_norms, gradient_table
from ablations.report.figures.images import (
    augmentation_samples,
    augmented_images,
    confusion,
    confusion_counts,
    equivariance,
    equivariance_table,
    gabor_fits,
    kernels,
    published_points,
    shift_map_table,
    shift_maps,
    widest_kernels,
)
from ablations.report.figures.interactions import heat_map, interaction_plot, profiles
from ablations.report.figures.learning import learning_curves, targets
from ablations.report.figures.studies import forecast_table, forecasts, shift_accuracy, shift_table
from ablations.report.figures.theme import GRID, INK, MUTED, Drawing, declare
from ablations.report.figures.tradeoffs import timing_ratios, timing_table, tradeoff

__all__ = [
    "GRID",
    "INK",
    "MUTED",
    "Drawing",
    "algorithm_table",
    "augmentation_samples",
    "augmented_images",
    "compartment_table",
    "compartments",
    "confusion",
    "confusion_counts",
    "coverage",
    "coverage_table",
    "declare",
    "draw",
    "equivariance",
    "equivariance_table",
    "exactness",
    "forecast_table",
    "forecasts",
    "forest",
    "gabor_fits",
    "gradient_norms",
    "gradient_table",
    "heat_map",
    "history_by_noise",
    "history_table",
    "horizon_table",
    "interaction_plot",
    "kernels",
    "learning_curves",
    "levels",
    "origin_table",
    "peak_by_origin",
    "profiles",
    "published_points",
    "score_by_horizon",
    "shift_accuracy",
    "shift_map_table",
    "shift_maps",
    "shift_table",
    "targets",
    "timing_ratios",
    "timing_table",
    "tradeoff",
    "widest_kernels",
    "winners",
]
