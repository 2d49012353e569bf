"""`python -m bench`: shows, compares and publishes the files that `pytest --benchmark --benchmark-json` writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import compare, figures, readme, record
from bench.results import ResultError, read
from bench.table import render


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ResultError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser("show", help="print tables of results; with --out also write a page with figures")
    show.add_argument("results", type=Path, nargs="+", metavar="RESULT")
    show.add_argument("--out", type=Path, metavar="FOLDER")
    show.set_defaults(run=_show)

    comparing = commands.add_parser("compare", help="two results: what became faster or slower from A to B")
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    comparing.add_argument(
        "--fail-below",
        type=_ratio,
        metavar="RATIO",
        help="exit with 1 if a case is slower than A by more than this ratio and beyond the noise, as 0.95, or if B "
        "lacks it",
    )
    comparing.set_defaults(run=_compare)

    recording = commands.add_parser("record", help="run the main table and publish it: bench/results and the README")
    recording.set_defaults(run=lambda options: record.record())

    publishing = commands.add_parser("readme", help="write the README's table from bench/results")
    publishing.set_defaults(run=lambda options: readme.write())
    return parser


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no ratio above 0 and up to 1")
    return ratio


def _show(options: argparse.Namespace) -> int:
    found = [read(path) for path in options.results]
    for results in found:
        print(render(results.rows, results.title, sys.stdout.isatty()))
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(f"--out {options.out} cannot be made: {error.strerror}; name another folder") from error
        print(f"figures: {figures.write_page(found, options.out)}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    a, b = read(options.a), read(options.b)
    found = compare.changes(a, b)
    print(compare.render(found, compare.geometric_mean(found, a, b), sys.stdout.isatty()))
    for line in compare.differences(a, b):
        print(line)
    if options.fail_below is None:
        return 0
    failed = compare.failures(found, options.fail_below)
    for change in failed:
        print(f"slower than allowed: {change.group}-{change.shape}, {change.ratio:.2f} < {options.fail_below}")
    gone = compare.missing(a, b)
    if gone:
        print(f"not in B, so that nothing is known of it: {', '.join(gone)}")
    return 1 if failed or gone else 0


if __name__ == "__main__":
    sys.exit(main())
