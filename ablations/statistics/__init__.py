"""What the data say of each hypothesis: paired differences, tests, corrections, verdicts, interactions, convergence.

Seeds pair runs: two runs of one seed share data, split and order, so every comparison is made within seeds first, and
its uncertainty is that of the mean over seeds.
"""

from ablations.statistics.aggregate import interquartile_mean, pareto_front, performance_profile
from ablations.statistics.convergence import Target, area_under_curve, baseline_target, share_reached, time_to_target
from ablations.statistics.decisions import (
    ALPHA,
    POWER,
    RULES,
    Verdict,
    benjamini_hochberg,
    equivalence_p,
    holm,
    judge,
    seeds_to_decide,
    seeds_to_place,
    smallest_detectable,
)
from ablations.statistics.effects import baseline_runs, effects, one_factor_runs, seed_pairs
from ablations.statistics.factorial import contrast, crossed_cells, interactions, main_effects
from ablations.statistics.paired import (
    Difference,
    McNemar,
    binomial_error,
    bootstrap_interval,
    hedges,
    mcnemar,
    mean_interval,
    paired_difference,
    paired_median,
    paired_ratio,
    probability_of_improvement,
    proportion_interval,
)

__all__ = [
    "ALPHA",
    "POWER",
    "RULES",
    "Difference",
    "McNemar",
    "Target",
    "Verdict",
    "area_under_curve",
    "baseline_runs",
    "baseline_target",
    "benjamini_hochberg",
    "binomial_error",
    "bootstrap_interval",
    "contrast",
    "crossed_cells",
    "effects",
    "equivalence_p",
    "hedges",
    "holm",
    "interactions",
    "interquartile_mean",
    "judge",
    "main_effects",
    "mcnemar",
    "mean_interval",
    "one_factor_runs",
    "paired_difference",
    "paired_median",
    "paired_ratio",
    "pareto_front",
    "performance_profile",
    "probability_of_improvement",
    "proportion_interval",
    "seed_pairs",
    "seeds_to_decide",
    "seeds_to_place",
    "share_reached",
    "smallest_detectable",
    "time_to_target",
]
