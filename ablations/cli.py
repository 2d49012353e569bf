# PYTHON_ARGCOMPLETE_OK
"""The command line of the suite: `ablate list | plan | run | retry | status | report | compare | export`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.table import Table

from ablations import devices, studies
from ablations.callbacks import TRACKERS, track
from ablations.design import DesignError
from ablations.extras import ExtraError, require
from ablations.plan import Design
from ablations.records import Records, RecordsError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ablations.engines import Engine
    from ablations.plan import Plan

UNSUCCESSFUL, MISUSED, INTERRUPTED = 1, 2, 130  # exit codes
DATA_OPTIONS = {  # of studies that read data: `--data FILE` is `--set data=FILE`
    "data": ("FILE", "a named data set, or a file or folder of your own"),
    "date": ("COLUMN", "of a CSV file: the column that holds dates"),
    "value": ("COLUMN", "of a CSV file: the column that holds counts or rates"),
    "group": ("COLUMN", "of a CSV file: the column that names the region or age group of a row"),
}
STATES = ("done", "diverged", "failed", "running", "waiting")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it succeeded, 1 if a run failed, 2 for a word that names nothing, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(words)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"ablate: {message}", file=sys.stderr)
            return arguments.command(arguments)
    except DesignError as error:
        print(f"ablate: {error}", file=sys.stderr)
        return MISUSED
    except (RecordsError, ExtraError) as error:
        print(f"ablate: {error}", file=sys.stderr)
        return UNSUCCESSFUL
    except BrokenPipeError:  # who reads our output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNSUCCESSFUL if arguments.command in (_run, _retry) else 0
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
    _print_plans([plan.measured(arguments.workers) for plan in _plans(arguments)], arguments)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    return _do(_plans(arguments), arguments)


def _retry(arguments: argparse.Namespace) -> int:
    from ablations.plan import plan_failed

    records = Records(arguments.runs)
    _check_recorded(arguments.studies, records)
    chosen = [studies.load(name) for name in arguments.studies or records.studies()]
    plans = [plan for study in chosen for plan in plan_failed(study, records, arguments.workers)]
    if not plans:
        print(f"No run of {', '.join(study.name for study in chosen)} is on record as failed.")
        return 0
    return _do(plans, arguments)


def _do(plans: Sequence[Plan], arguments: argparse.Namespace) -> int:
    """Do what the plans have to do, then time what is done."""
    if arguments.engine == "local":
        devices.device()  # or say now why it cannot be had
    start = time.monotonic()
    records, console = Records(arguments.runs), _console()
    arguments.trackers = [] if arguments.dry_run else list(map(track, dict.fromkeys(arguments.log)))
    counts: Counter[str] = Counter()
    if any(plan.jobs for plan in plans) or arguments.dry_run:
        plans = [plan.measured(arguments.workers) for plan in plans]
        _print_plans(plans, arguments)
    if arguments.dry_run:
        return 0
    for plan in plans:
        records.declare(plan.study.extended(plan.runs).declaration())
        records.plan(run for of_condition in plan.runs.values() for run in of_condition)
    if any(plan.jobs for plan in plans):
        counts = _run_jobs(plans, arguments, records, console)
    if not (counts["failed"] and arguments.fail_fast):
        _time_steps(plans, records, console)
    _summarise(plans, counts, time.monotonic() - start, arguments, console)
    return UNSUCCESSFUL if counts["failed"] or any(plan.failed for plan in plans) else 0


def _status(arguments: argparse.Namespace) -> int:
    states = Records(arguments.runs).states()
    if states.empty:
        print(f"No runs under {arguments.runs}; `ablate run STUDY` makes some.")
        return 0
    table = Table("study", "version", "preset", *STATES)
    for group, of_group in states.groupby(["study", "study_version", "preset"])["state"]:
        counts = of_group.value_counts()
        table.add_row(*map(str, group), *(str(counts.get(state, 0)) for state in STATES))
    _console().print(table)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    records = Records(arguments.runs)
    named = []
    if records.studies():  # else the page says that nothing is on record
        named = arguments.studies
        _check_recorded(named, records)
        _check_preset(arguments.preset, records)
    _make_folder(arguments.out)

    from ablations.report import build

    summary = build(records, arguments.out, arguments.preset, named or None)
    pages = [str(path) for path in summary.files if path.parent == arguments.out]
    folders = Counter(path.parent for path in summary.files if path.parent != arguments.out)
    print("\n".join([*summary.lines, "", *pages, *(f"{folder} ({n} files)" for folder, n in folders.items())]))
    _check_recorded((), records)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    for folder in (arguments.runs_a, arguments.runs_b):
        _check_recorded((), Records(folder))

    _make_folder(arguments.out)

    from ablations.report.compare import compare, write

    a, b = Records(arguments.runs_a), Records(arguments.runs_b)
    comparisons = compare(a, b, arguments.preset)
    words = ["ablate", "compare", str(a.root), str(b.root), "--preset", arguments.preset, "--out", str(arguments.out)]
    index = write(comparisons, a, b, arguments.out, shlex.join(words))[0]
    for comparison in comparisons:
        print("\n".join([comparison.title, *(f"  {line}" for line in [*comparison.sentences, *comparison.notes])]))
    print(f"\n{index}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    runs = Records(arguments.runs).table()
    if arguments.format == "csv":
        runs.to_csv(sys.stdout, index=False)
    elif arguments.format == "json":
        runs.to_json(sys.stdout, orient="records", indent=1)
        print()
    else:
        require("pyarrow", "parquet")
        runs.to_parquet(sys.stdout.buffer, index=False)
    return 0


def _plans(arguments: argparse.Namespace) -> list[Plan]:
    """A plan per study named; every word is checked before anything runs."""
    from ablations.plan import plan_study

    names = [word for word in arguments.words if "=" not in word]
    levels = [word for word in arguments.words if "=" in word]
    seeds, workers = arguments.seeds, arguments.workers
    chosen = [studies.load(name) for name in dict.fromkeys(names)]
    if not chosen:
        raise DesignError(f"no study named. Allowed: {', '.join(studies.names())}")
    if levels and len(chosen) > 1:
        raise DesignError(f"{levels[0]!r} needs a single study; named are {', '.join(names)}")
    records = Records(arguments.runs)
    design = arguments.design, arguments.strongest
    return [plan_study(study, arguments.preset, levels, seeds, records, workers, *design) for study in chosen]


def _print_plans(plans: Sequence[Plan], arguments: argparse.Namespace) -> None:
    from ablations.plan import duration, longest_first, wall_seconds

    console, jobs = _console(), longest_first(plans)
    for plan in plans:
        console.print(plan)
    runs = sum(len(job.configurations) for job in jobs)
    about = "at least" if any(job.seconds is None for job in jobs) else "about"
    wall = f"{about} {duration(wall_seconds(jobs, arguments.workers))}"
    workers = f"{arguments.workers} worker{'s' if arguments.workers > 1 else ''}"
    console.print(f"{runs} runs to do in {len(jobs)} ensembles, {wall} of training with {workers}.")


def _run_jobs(plans: Sequence[Plan], arguments: argparse.Namespace, records: Records, console: Console) -> Counter[str]:
    from ablations.callbacks import Curves
    from ablations.plan import longest_first
    from ablations.progress import Display

    jobs = longest_first(plans)
    with ExitStack() as stack:
        trackers = [stack.enter_context(closing(tracker)) for tracker in arguments.trackers]
        curves = Curves(jobs, trackers)
        display = stack.enter_context(Display(jobs, console))
        for event in stack.enter_context(closing(_engine(arguments).run(jobs, records))):
            display.show(event)
            curves.show(event)
            if arguments.fail_fast and display.counts["failed"]:
                break
    return display.counts


def _engine(arguments: argparse.Namespace) -> Engine:
    on_gpu = devices.name() == "cuda"
    if arguments.engine == "ray":
        from ablations.engines.ray import Ray

        return Ray(arguments.address, on_gpu)
    from ablations.engines.local import Local

    return Local(arguments.workers, on_gpu)


def _time_steps(plans: Sequence[Plan], records: Records, console: Console) -> None:
    """Time every run on record of the plans' studies and presets, also earlier ones: they are compared with each other.

    Timings need the machine alone: while another process trains from the same folder, they are left for later.
    """
    from rich.progress import Progress

    for plan in plans:
        finished = [
            run
            for run in records.configurations(plan.study.name, plan.study.version)
            if run.preset == plan.preset and run.data_version == plan.study.task.data_version(run.settings)
        ]
        if all(map(records.has_timing, finished)):
            continue
        if (records.states().state == "running").any():
            console.print("Another process still trains; repeat the command when it has ended, to time steps.")
            return
        from ablations.timing import time_runs

        with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
            bar = bars.add_task(f"{plan.study.name}: timing steps")

            def show(done: int, blocks: int, bars: Progress = bars, bar: TaskID = bar) -> None:
                bars.update(bar, completed=done, total=blocks)

            time_runs(finished, plan.study.task, records, show)


def _summarise(
    plans: Sequence[Plan], counts: Counter[str], seconds: float, arguments: argparse.Namespace, console: Console
) -> None:
    from ablations.plan import duration
    from ablations.progress import outcome

    runs = sum(len(of_condition) for plan in plans for of_condition in plan.runs.values())
    to_do = sum(len(of_condition) for plan in plans for of_condition in plan.to_do.values())
    failed = counts["failed"] + sum(plan.failed for plan in plans)
    now = outcome(counts) if counts else "nothing to do"
    console.print(f"{runs} runs, {runs - to_do} on record before; now: {now}, in {duration(seconds)}.", highlight=False)
    where = ["--runs", str(arguments.runs)]
    if counts["elsewhere"]:
        look = shlex.join(["ablate", "status", *where])
        console.print(f"{counts['elsewhere']} are another process's: `{look}` shows how they get on.", highlight=False)
    if failed:
        why, again = shlex.join(["ablate", "export", *where]), shlex.join(["ablate", "retry", *where])
        console.print(f"{failed} failed. Why: `{why}`, column message. To try them again: {again}", highlight=False)
    else:
        preset = ["--preset", plans[0].preset]
        console.print(f"Next: {shlex.join(['ablate', 'report', *where, *preset])}", highlight=False)


def _check_recorded(named: Sequence[str], records: Records) -> None:
    from ablations.design import find

    recorded = records.studies()
    if not recorded:
        raise DesignError(f"no runs under {records.root}; `ablate run STUDY` makes some")
    for name in named:
        find(name, {name: name for name in recorded}, f"study with runs under {records.root}")


def _check_preset(preset: str, records: Records) -> None:
    """Raise `DesignError` for a preset that no run on record has, if there are any."""
    from ablations.design import find

    if preset not in records.presets() and (presets := set(records.presets())):
        find(preset, {name: name for name in sorted(presets)}, f"preset of the runs under {records.root}")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DesignError(f"--out {out} cannot be made: {error.strerror}; name a folder that can be written") from None
    if not os.access(out, os.W_OK):
        raise DesignError(f"--out {out} cannot be written; name another folder")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; unlike argparse's subcommands, words may also follow options: `run vision --seeds 5 depth=1`."""
    parser = _parser()
    with suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(parser)
    arguments, rest = parser.parse_known_args(words)
    if rest and (any(word.startswith("-") for word in rest) or "words" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.words += rest
    if "set" in arguments:
        named = {name: getattr(arguments, name, None) for name in DATA_OPTIONS}
        changes = [*arguments.set, *(f"{name}={value}" for name, value in named.items() if value is not None)]
        arguments.preset = " ".join([arguments.preset, *map(shlex.quote, sorted(changes))])
    return arguments


def _complete_words(prefix: str, parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    """What a shell offers: studies, then the factors and levels of the one named."""
    named = [word for word in parsed_args.words or () if word in studies.names()]
    if not named:
        return studies.names()
    return [f"{factor.name}={level.name}" for factor in studies.load(named[0]).factors for level in factor.levels]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _several(text: str) -> int:
    number = int(text)
    if number < 2:
        raise ValueError
    return number


_several.__name__ = "whole number above 1"
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
        command.add_argument(
            "--preset", default="quick", metavar="NAME", help="smoke, quick, full or the study's (quick)"
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="another value for a setting of the preset, such as epochs=20; repeatable. Its runs are kept apart",
        )
        for name, (metavar, text) in DATA_OPTIONS.items():
            command.add_argument(f"--{name}", metavar=metavar, help=text)

    def add_workers(command: argparse.ArgumentParser) -> None:
        workers = os.cpu_count() or 1
        command.add_argument("--workers", type=_positive, default=workers, metavar="N", help=f"processes ({workers})")

    def add_choice(command: argparse.ArgumentParser) -> None:
        words = command.add_argument(
            "words",
            nargs="+",
            metavar="STUDY|FACTOR=LEVEL,...",
            help="studies; with a single one, the levels to try. Factors not named stay at their baseline.",
        )
        words.completer = _complete_words  # type: ignore[attr-defined]  # argcomplete's way
        add_runs(command)
        add_preset(command)
        command.add_argument("--seeds", type=_positive, metavar="N", help="runs per condition (the preset's)")
        command.add_argument(
            "--design",
            choices=get_args(Design),
            help="one factor at a time around the baseline; every combination; every combination of any two factors, "
            "by default of those that were strongest one at a time; or a list of conditions, FACTOR=LEVEL+FACTOR=LEVEL "
            "(the study's, else one-factor)",
        )
        command.add_argument(
            "--strongest", type=_several, default=3, metavar="K", help="how many factors the design pairs takes (3)"
        )
        add_workers(command)

    def add_running(command: argparse.ArgumentParser) -> None:
        command.add_argument("--dry-run", action="store_true", help="show the plan; write nothing, run nothing")
        command.add_argument("--fail-fast", action="store_true", help="stop at the first run that fails")
        command.add_argument("--engine", choices=("local", "ray"), default="local", help="where jobs run (local)")
        command.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster (a new one on this machine)")
        command.add_argument(
            "--log", choices=TRACKERS, action="append", default=[], help="stream learning curves there; repeatable"
        )

    add("list", _list, "Studies, their factors and levels.", "list")
    plan = add(
        "plan",
        _plan,
        "What a run would do, and how long.",
        "plan vision --data fashion-mnist",
        "plan epidemic cell=lstm,gru --seeds 5",
        "plan epidemic cell=gru,lstm depth=1,2 --design factorial",
    )
    add_choice(plan)
    run = add(
        "run",
        _run,
        "Train what is not on record yet, then time it. Safe to stop and to repeat.",
        "run epidemic vision",
        "run epidemic cell=lstm,gru history=7,14,28 --seeds 5",
        "run epidemic --design pairs --strongest 2",
        "run epidemic cell=lstm+depth=2 history=28 --design list",
        "run vision --engine ray --address 10.0.0.1:6379",
    )
    add_choice(run)
    add_running(run)
    retry = add("retry", _retry, "Train again the runs that failed.", "retry", "retry epidemic --workers 1")
    retry.add_argument("studies", nargs="*", metavar="STUDY", help="all on record")
    add_runs(retry)
    add_workers(retry)
    add_running(retry)
    add_runs(
        add(
            "status",
            _status,
            "How many runs are done, failed, diverged, running, waiting.",
            "status",
            "status --runs elsewhere",
        )
    )
    report = add(
        "report", _report, "Figures, page and notebook from the records.", "report", "report vision --out page"
    )
    report.add_argument("studies", nargs="*", metavar="STUDY", help="all on record")
    add_runs(report)
    add_preset(report)
    report.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="where the report goes (report)"
    )
    compare = add(
        "compare",
        _compare,
        "Two runs folders side by side: machines, versions or kernels.",
        "compare runs other/runs",
        "compare runs-native runs-fused --out comparison",
    )
    compare.add_argument("runs_a", type=Path, metavar="RUNS_A", help="the runs folder that is compared with")
    compare.add_argument("runs_b", type=Path, metavar="RUNS_B", help="the runs folder that is judged")
    add_preset(compare)
    compare.add_argument(
        "--out", type=Path, default=Path("comparison"), metavar="DIR", help="where it goes (comparison)"
    )
    export = add(
        "export", _export, "The tidy table of all runs.", "export > runs.csv", "export --format parquet > runs.parquet"
    )
    add_runs(export)
    export.add_argument("--format", choices=("csv", "json", "parquet"), default="csv", help="(csv)")
    return parser
