"""The cases that `pytest --benchmark` runs, declared as data: add a case by adding its shape to a line."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cases import MODES, Case, parse

# One layer in one direction, two layers, both directions: from single sequences to large batches, H 32 to 1024.
RECURRENT = """
T30-B32-I3-H32 T60-B64-I3-H64 T14-B256-I1-H64 T28-B64-I28-H128 T100-B1-I64-H128 T50-B32-I128-H256
T150-B16-I256-H256 T25-B64-I512-H512 T8-B32-I1024-H1024 T60-B64-I3-H64-L2 T28-B64-I28-H128-bidirectional
"""

# First layers of image networks, then deeper ones, LeNet's, one of an ImageNet network, 1x1, depthwise, batch 1.
CONVOLUTIONS = """
B64-C1-O16-S28-K3 B64-C16-O32-S14-K3 B64-C32-O64-S7-K3 B64-C3-O32-S32-K3 B64-C32-O64-S32-K3 B64-C64-O64-S16-K3
B64-C1-O6-S28-K5 B16-C64-O64-S56-K3 B64-C64-O128-S16-K1 B64-C64-O64-S16-K3-depthwise B64-C64-O64-S16-K7-depthwise
B1-C3-O32-S32-K3 B1-C64-O64-S16-K3
"""

ENSEMBLES = "E32-T30-B32-I3-H32"

# What the studies train, both presets: `epidemic` (history 7, 14, 28; one and two layers) and `vision`'s blocks.
STUDY_RECURRENT = """
T7-B64-I1-H32 T14-B64-I1-H32 T28-B64-I1-H32 T14-B64-I1-H32-L2 T14-B256-I1-H64 T28-B256-I1-H64
"""
STUDY_CONVOLUTIONS = "B64-C1-O16-S28-K3 B64-C16-O32-S14-K3 B64-C32-O64-S7-K3"
CHANNELS_LAST = """
B64-C16-O32-S14-K3-nhwc B64-C3-O32-S32-K3-nhwc B64-C64-O64-S16-K3-nhwc B64-C64-O128-S16-K1-nhwc
B64-C64-O64-S16-K3-depthwise-nhwc B64-C64-O64-S16-K7-depthwise-nhwc
"""
STUDY_ENSEMBLES = "E16-T14-B64-I1-H32 E30-T14-B256-I1-H64"

ENSEMBLE_SIZES = " ".join(f"E{2**power}-T30-B32-I3-H32" for power in range(9))

# How time and memory grow: one size at a time around the smallest case of the main table.
SWEEPS = """
T8-B32-I3-H32 T16-B32-I3-H32 T30-B32-I3-H32 T64-B32-I3-H32 T128-B32-I3-H32 T256-B32-I3-H32 T512-B32-I3-H32
T30-B1-I3-H32 T30-B4-I3-H32 T30-B16-I3-H32 T30-B64-I3-H32 T30-B256-I3-H32
T30-B32-I3-H16 T30-B32-I3-H64 T30-B32-I3-H128 T30-B32-I3-H256 T30-B32-I3-H512
"""

# DeepBench's training rows (github.com/baidu-research/DeepBench, rnn_problems.h); there the input is as wide as the
# state. The larger ones need a GPU.
DEEPBENCH_LSTM = """
T150-B16-I256-H256 T150-B32-I256-H256 T150-B64-I256-H256
T25-B16-I512-H512 T25-B32-I512-H512 T25-B64-I512-H512 T25-B128-I512-H512
T25-B16-I1024-H1024 T25-B32-I1024-H1024 T25-B64-I1024-H1024 T25-B128-I1024-H1024
"""
DEEPBENCH_LSTM_LARGE = """
T50-B8-I1536-H1536 T50-B16-I1536-H1536 T50-B32-I1536-H1536
T25-B16-I2048-H2048 T25-B32-I2048-H2048 T25-B64-I2048-H2048 T25-B128-I2048-H2048
T25-B16-I4096-H4096 T25-B32-I4096-H4096 T25-B64-I4096-H4096 T25-B128-I4096-H4096
"""
DEEPBENCH_GRU = "T1-B32-I512-H512"
DEEPBENCH_GRU_LARGE = """
T1500-B32-I1024-H1024 T1500-B64-I1024-H1024
T187-B32-I1536-H1536 T375-B32-I1536-H1536 T750-B32-I1536-H1536 T1500-B32-I1536-H1536
T187-B32-I2048-H2048 T375-B32-I2048-H2048 T750-B32-I2048-H2048 T1500-B32-I2048-H2048
T187-B32-I2560-H2560 T375-B32-I2560-H2560 T750-B32-I2560-H2560 T1500-B32-I2560-H2560
T187-B32-I2816-H2816 T375-B32-I2816-H2816 T750-B32-I2816-H2816
"""


def cases(full: bool = False, device: str = "cpu") -> list[Case]:
    """The main table's cases, or with `full` all that the device can take in reasonable time."""
    names = [
        *_named([f"recurrent-{cell}-{mode}" for cell in ("LSTM", "GRU") for mode in MODES], RECURRENT),
        *_named(["ensemble-LSTM-train", "ensemble-GRU-train"], ENSEMBLES),
        *_named(["conv-train", "conv-infer"], CONVOLUTIONS),
    ]
    if full:
        names += [
            *_named(["recurrent-RNN-train", "recurrent-RNN-infer"], RECURRENT),
            *_named([f"recurrent-{cell}-train" for cell in ("LSTM", "GRU", "RNN")], STUDY_RECURRENT),
            *_named(["conv-train"], STUDY_CONVOLUTIONS),
            *_named(["conv-train", "conv-infer"], CHANNELS_LAST),
            *_named([f"ensemble-{cell}-train" for cell in ("LSTM", "GRU", "RNN")], STUDY_ENSEMBLES),
            *_named(["ensemble-LSTM-train", "ensemble-GRU-train", "ensemble-GRU-infer"], ENSEMBLE_SIZES),
            *_named(["recurrent-LSTM-train", "recurrent-GRU-train"], SWEEPS),
            *_named(["recurrent-LSTM-train"], DEEPBENCH_LSTM),
            *_named(["recurrent-GRU-train"], DEEPBENCH_GRU),
        ]
        if device == "cuda":
            names += [
                *_named(["recurrent-LSTM-train"], DEEPBENCH_LSTM_LARGE),
                *_named(["recurrent-GRU-train"], DEEPBENCH_GRU_LARGE),
            ]
    return [parse(name) for name in dict.fromkeys(names)]


def _named(groups: Sequence[str], shapes: str) -> list[str]:
    return [f"{group}-{shape}" for group in groups for shape in shapes.split()]
