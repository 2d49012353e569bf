"""The README's speed table, written from the results under bench/results."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.protocol import NATIVE
from bench.results import ResultError, Results, Row, read

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- written by `python -m bench readme` -->\n", "<!-- until here -->\n"

KINDS = {  # a line of the table: the groups whose cases it averages
    "GRU": {"training": "recurrent-GRU-train", "inference": "recurrent-GRU-infer"},
    "LSTM": {"training": "recurrent-LSTM-train", "inference": "recurrent-LSTM-infer"},
    "convolution, ReLU, 2 x 2 max pooling": {"training": "conv-train", "inference": "conv-infer"},
    "32 GRUs in one call, against a loop over 32 modules": {"training": "ensemble-GRU-train"},
    "32 LSTMs likewise": {"training": "ensemble-LSTM-train"},
}
RUNS = {
    "epidemic-E32": "32 runs of the epidemic study in one ensemble, against one by one with torch.nn",
    "vision-E8": "8 runs of the vision study likewise",
    "vision-E1-epoch": "an epoch of one model of the vision study",
}
MODES = ("training", "inference")
ON_GPU = {  # a line of the table of a GPU: the group of measurements that it averages
    "GRU training": "GRU, bfloat16 and TF32, 256 to 1024 units",
    "LSTM training": "LSTM likewise",
    "ensemble training": "128 GRUs or LSTMs of 32 to 128 units in one call, against a loop over 128 modules",
    "convolution training": "convolution, ReLU, pooling: one or three input channels, or depthwise 5 x 5 and 7 x 7",
    "wide convolution training": "convolution, ReLU, pooling of 64 channels",
}
ON_GPU_RATIOS = {
    "ratio_chosen": "as chosen",
    "ratio": "our kernels wherever they serve",
    "ratio_eager": "as chosen, queued by Python",
}


def section(results: Sequence[tuple[str, Results]]) -> str:
    """The table of several results on one machine, most threads first, and what stands below it."""
    columns = [(f"{mode}, {_threads(found)}", mode, _main_rows(found)) for _, found in results for mode in MODES]
    lines = [f"| torch.nn's time / ours, float32 | {' | '.join(heading for heading, *_ in columns)} |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for kind, groups in KINDS.items():
        cells = [_cell([row for row in rows if row.group == groups.get(mode)]) for _, mode, rows in columns]
        lines.append(f"| {kind}{_shapes(columns[0][2], groups)} | {' | '.join(cells)} |")
    for shape, text in RUNS.items():
        cells = [_cell([row for row in rows if row.shape == shape] * (mode == "training")) for _, mode, rows in columns]
        if any(cells):  # a result may be older than a case
            lines.append(f"| {text} | {' | '.join(cells)} |")
    notes = textwrap.fill(" ".join(_notes(results)), 120, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*lines, "", notes]) + "\n"


def published() -> str:
    """The section as bench/results has it: a table per machine.

    Raises:
        ResultError: there are no results.
    """
    machines: dict[str, list[tuple[str, Results]]] = {}
    for path in sorted(RESULTS.glob("cpu-*.json")):
        results = read(path)
        machines.setdefault(results.about["machine"], []).append((path.stem, results))
    if not machines:
        raise ResultError(f"{RESULTS} holds no results; `python -m bench record` measures some")
    for found in machines.values():
        found.sort(key=lambda named: -int(named[1].about["threads"]))
    gpus = [gpu_section(path.stem, json.loads(path.read_text())) for path in sorted(RESULTS.glob("nvidia-*.json"))]
    return "\n".join([*map(section, machines.values()), *gpus])


def gpu_section(name: str, results: dict[str, Any]) -> str:
    """The table of what `make gpu` has measured on one GPU, and what stands below it."""
    gpu = results["gpu"]
    lines = [f"| training, torch.nn's time / ours on an {gpu['name']} | {' | '.join(ON_GPU_RATIOS.values())} |"]
    lines.append("|---" * (1 + len(ON_GPU_RATIOS)) + "|")
    for group, text in ON_GPU.items():
        rows = [row for row in results["measurements"] if row.get("group") == group and "ratio" in row]
        if rows:
            cells = [_mean_and_ends([row[ratio] for row in rows]) for ratio in ON_GPU_RATIOS]
            lines.append(f"| {text}, {len(rows)} cases | {' | '.join(cells)} |")
    notes = (
        f"Geometric means (least, most) against the fastest of torch's own ways, of replayed graphs with a cold cache "
        f"save in the last column. Printed by `make gpu` on {results['date'][:10]} (torch {gpu['torch']}, CUDA "
        f"{gpu['cuda']}, cuDNN {gpu['cudnn']}); every case: [{name}](bench/results/{name}.json)."
    )
    for row in results["measurements"]:
        if "grid" in row:
            notes += f" {row['runs']:,} small runs of the {row['grid']} study took {row['seconds']:.0f} s."
    notes = " ".join([notes, *results.get("notes", [])])
    filled = textwrap.fill(notes, 120, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*lines, "", filled]) + "\n"


def _mean_and_ends(ratios: Sequence[float]) -> str:
    return f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"


def write() -> int:
    """Put the section into the README."""
    path = ROOT / "README.md"
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}{published()}{END}{after}")
    return 0


def _notes(results: Sequence[tuple[str, Results]]) -> Iterator[str]:
    first = results[0][1]
    links = " and ".join(f"[{_threads(found)}](bench/results/{name}.txt)" for name, found in results)
    yield (
        f"Geometric means (least, most). Printed by `python -m bench record` on {first.about['date']} "
        f"({first.about['machine']}, {first.about['kernels']}, torch {first.about['torch']}); every case with its "
        f"interval: {links}."
    )
    for _, found in results:
        rows = _main_rows(found)
        counts = {word: [row.case for row in rows if row.verdict == word] for word in ("faster", "same", "slower")}
        losses = f": {', '.join(counts['slower'])}" if counts["slower"] else ""
        yield (
            f"On {_threads(found)}, of {len(rows)} cases {len(counts['faster'])} are faster, {len(counts['same'])} "
            f"the same within the noise, {len(counts['slower'])} slower{losses}."
        )


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    ratios = [row.ratio for row in rows]
    return _mean_and_ends(ratios) if len(rows) > 1 else f"{ratios[0]:.1f}"


def _shapes(rows: Sequence[Row], groups: dict[str, str]) -> str:
    """`, 11 shapes`, where a line averages several."""
    count = len([row for row in rows if row.group == groups["training"]])
    return f", {count} shapes" if count > 1 else ""


def _threads(results: Results) -> str:
    threads = int(results.about["threads"])
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _main_rows(results: Results) -> list[Row]:
    return [row for row in results.rows if row.part == "step" and row.other == NATIVE]
