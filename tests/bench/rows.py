"""A row of results to vary."""

from __future__ import annotations

import math

from bench.results import Row

ROW = Row(
    group="conv-train",
    shape="B1-C3",
    other="torch.nn",
    part="step",
    clock="wall",
    ratio=4.0,
    low=3.9,
    high=4.1,
    won=1.0,
    band=1.02,
    verdict="faster",
    logs=(math.log(3.95), math.log(4.0), math.log(4.05)),
    milliseconds=0.5,
    other_milliseconds=2.0,
    gflops_per_second=20.0,
    bound="arithmetic",
    limit_share=0.25,
    intensity=8.0,
    peak_gflops_per_second=80.0,
    peak_gigabytes_per_second=100.0,
    held_megabytes=1.0,
    other_held_megabytes=2.0,
    blocks=100,
    threads=2,
    device="cpu",
)
