"""The command line of the suite: `ablate list | plan | run | status | report | export`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ablations import studies
from ablations.design import DesignError
from ablations.records import Records

if TYPE_CHECKING:
    from ablations.plan import Plan

UNSUCCESSFUL, MISUSED, INTERRUPTED = 1, 2, 130  # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it succeeded, 1 if a run failed, 2 for a word that names nothing, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(words)
    try:
        return arguments.command(arguments)
    except DesignError as error:
        print(f"ablate: {error}", file=sys.stderr)
        return MISUSED
    except BrokenPipeError:  # who reads our output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"\nStopped; what is done is kept. To resume: {shlex.join(['ablate', *words])}", file=sys.stderr)
        return INTERRUPTED


def _list(arguments: argparse.Namespace) -> int:
    table = Table("study", "question", "factor", "levels, the baseline first")
    for study in map(studies.load, studies.names()):
        for row, factor in enumerate(study.factors):
            levels = ", ".join(level.name for level in factor.levels)
            table.add_row(*(("", "") if row else (study.name, study.question)), factor.name, levels)
        table.add_section()
    _console().print(table)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    _print_plans([plan.measured() for plan in _plans(arguments)], arguments)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    plans = _plans(arguments)
    records, console = Records(arguments.runs), _console()
    for plan in plans:
        records.declare(plan.study.declaration())
    counts: Counter[str] = Counter()
    if any(to_do for plan in plans for to_do in plan.to_do.values()):
        plans = [plan.measured() for plan in plans]
        _print_plans(plans, arguments)
        counts = _run_jobs(plans, arguments, records, console)
    if not (counts["failed"] and arguments.fail_fast):
        for plan in plans:
            _time_steps(plan, records, console)
    _summarise(plans, counts, time.monotonic() - start, arguments, console)
    return UNSUCCESSFUL if counts["failed"] else 0


def _status(arguments: argparse.Namespace) -> int:
    runs = Records(arguments.runs).table()
    if runs.empty:
        print(f"No runs under {arguments.runs}; `ablate run STUDY` makes some.")
        return 0
    table = Table("study", "version", "preset", "done", "diverged", "failed")
    for group, statuses in runs.groupby(["study", "study_version", "preset"])["status"]:
        counts = statuses.value_counts()
        numbers = (str(counts.get(status, 0)) for status in ("done", "diverged", "failed"))
        table.add_row(*map(str, group), *numbers)
    _console().print(table)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    records = Records(arguments.runs)
    _check_recorded(arguments.studies, records)

    from ablations.report import build

    summary = build(records, arguments.out, arguments.preset, arguments.studies or None)
    pages = [str(path) for path in summary.files if path.parent == arguments.out]
    figures = len(summary.files) - len(pages)
    print("\n".join([*summary.lines, "", *pages, f"{arguments.out / 'figures'} ({figures} files)"]))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    runs = Records(arguments.runs).table()
    if arguments.format == "csv":
        runs.to_csv(sys.stdout, index=False)
    else:
        runs.to_json(sys.stdout, orient="records", indent=1)
        print()
    return 0


def _plans(arguments: argparse.Namespace) -> list[Plan]:
    """A plan per study named; every word is checked before anything runs."""
    from ablations.plan import plan_study

    names = [word for word in arguments.words if "=" not in word]
    levels = [word for word in arguments.words if "=" in word]
    chosen = [studies.load(name) for name in dict.fromkeys(names)]
    if not chosen:
        raise DesignError(f"no study named. Allowed: {', '.join(studies.names())}")
    if levels and len(chosen) > 1:
        raise DesignError(f"{levels[0]!r} needs a single study; named are {', '.join(names)}")
    records = Records(arguments.runs)
    return [
        plan_study(study, arguments.preset, levels, arguments.seeds, records, arguments.workers) for study in chosen
    ]


def _print_plans(plans: Sequence[Plan], arguments: argparse.Namespace) -> None:
    from ablations.plan import duration, longest_first, wall_seconds

    console, jobs = _console(), longest_first(plans)
    for plan in plans:
        console.print(plan)
    runs = sum(len(job.configurations) for job in jobs)
    wall = duration(wall_seconds(jobs, arguments.workers))
    console.print(f"{runs} runs to do in {len(jobs)} ensembles, about {wall} with {arguments.workers} workers.")


def _run_jobs(plans: Sequence[Plan], arguments: argparse.Namespace, records: Records, console: Console) -> Counter[str]:
    from ablations.engines.local import Local
    from ablations.plan import longest_first
    from ablations.progress import Display

    jobs = longest_first(plans)
    with Display(jobs, console) as display, closing(Local(arguments.workers).run(jobs, records)) as events:
        for event in events:
            display.show(event)
            if arguments.fail_fast and display.counts["failed"]:
                break
    return display.counts


def _time_steps(plan: Plan, records: Records, console: Console) -> None:
    """Time every recorded run of the plan's study and preset, also earlier ones: they are compared with each other."""
    from rich.progress import Progress

    from ablations.training import measure_seconds_per_step

    finished = [
        run
        for run in records.configurations(plan.study.name, plan.study.version)
        if run.preset == plan.preset and run.data_version == plan.study.task.data_version
    ]
    if all(map(records.has_timing, finished)):
        return
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task(f"{plan.study.name}: timing steps")
        measure_seconds_per_step(
            finished, plan.study.task, records, lambda done, blocks: bars.update(bar, completed=done, total=blocks)
        )


def _summarise(
    plans: Sequence[Plan], counts: Counter[str], seconds: float, arguments: argparse.Namespace, console: Console
) -> None:
    from ablations.plan import duration
    from ablations.progress import outcome

    runs = sum(len(of_condition) for plan in plans for of_condition in plan.runs.values())
    to_do = sum(len(of_condition) for plan in plans for of_condition in plan.to_do.values())
    now = outcome(counts) if counts else "nothing to do"
    console.print(f"{runs} runs, {runs - to_do} done before; now: {now}, in {duration(seconds)}.", highlight=False)
    if counts["failed"]:
        console.print(
            "Why runs failed: `ablate export`, column message. Failed runs are done again by the same command."
        )
    else:
        options = ["--runs", str(arguments.runs), "--preset", arguments.preset]
        console.print(f"Next: {shlex.join(['ablate', 'report', *options])}", highlight=False)


def _check_recorded(named: Sequence[str], records: Records) -> None:
    from ablations.design import find

    recorded = records.studies()
    if not recorded:
        raise DesignError(f"no runs under {records.root}; `ablate run STUDY` makes some")
    for name in named:
        find(name, {name: name for name in recorded}, f"study with runs under {records.root}")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; unlike argparse's subcommands, words may also follow options: `run vision --seeds 5 depth=1`."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    if rest and (any(word.startswith("-") for word in rest) or "words" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.words += rest
    return arguments


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "whole number above 0"  # argparse names the type by it


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ablate", description="Ablation studies: plan, run and report them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: object, text: str, *examples: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog="examples:\n" + "\n".join(f"  ablate {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        return command

    def add_runs(command: argparse.ArgumentParser) -> None:
        command.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where records live (runs)")

    def add_preset(command: argparse.ArgumentParser) -> None:
        command.add_argument("--preset", default="quick", metavar="NAME", help="smoke, quick or full (quick)")

    def add_choice(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "words",
            nargs="+",
            metavar="STUDY|FACTOR=LEVEL,...",
            help="studies; with a single one, the levels to try. Factors not named stay at their baseline.",
        )
        add_runs(command)
        add_preset(command)
        command.add_argument("--seeds", type=_positive, metavar="N", help="runs per condition (the preset's)")
        workers = os.cpu_count() or 1
        command.add_argument("--workers", type=_positive, default=workers, metavar="N", help=f"processes ({workers})")

    add("list", _list, "Studies, their factors and levels.", "list")
    plan = add(
        "plan", _plan, "What a run would do, and how long.", "plan vision", "plan epidemic cell=lstm,gru --seeds 5"
    )
    add_choice(plan)
    run = add(
        "run",
        _run,
        "Train what is not done yet, then time it. Safe to stop and to repeat.",
        "run epidemic vision",
        "run epidemic cell=lstm,gru history=7,14,28 --seeds 5",
    )
    add_choice(run)
    run.add_argument("--fail-fast", action="store_true", help="stop at the first run that fails")
    add_runs(add("status", _status, "How many runs are on record.", "status", "status --runs elsewhere"))
    report = add(
        "report", _report, "Figures, page and notebook from the records.", "report", "report vision --out page"
    )
    report.add_argument("studies", nargs="*", metavar="STUDY", help="all on record")
    add_runs(report)
    add_preset(report)
    report.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="where the report goes (report)"
    )
    export = add("export", _export, "The tidy table of all runs.", "export > runs.csv", "export --format json")
    add_runs(export)
    export.add_argument("--format", choices=("csv", "json"), default="csv", help="(csv)")
    return parser
