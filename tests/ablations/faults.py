"""What may happen to runs, made to happen: kills, torn files, full disks, rivals, jumping clocks, want of memory.

`make faults` does it at length (`python tests/ablations/faults.py`) and prints the counts; `test_faults.py` briefly.
After every fault the runs are resumed: the table must equal the uninterrupted one, with no finished run lost or done
twice.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import planted
import psutil

from ablations.plan import plan_study
from ablations.records import Records, RecordsError

SEEDS = 3
SCRIPT = Path(__file__).with_name("planted_cli.py")
ROOT = Path(__file__).parents[2]
NOBODY = 65534
FAMILY = ("command", "helper", "worker")  # by generation
POINTS = ("temporary made", "half written", "synced", "renamed", "folder synced")
FILES = ("config.json", "environment.json", "curve.csv", "predictions.npz", "result.json")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "pandas"])


@dataclass(frozen=True)
class Reference:
    """What is left when nothing happens: the table that every other must equal, and the time it takes."""

    table: pd.DataFrame
    seconds: float


def kills_at_random_moments(count: int, reference: Reference, draw: random.Random) -> str:
    """A process that trains is killed, again and again, until its folder is complete all the same."""
    kills = folders = 0
    while kills < count:
        with _folder() as root:
            folders += 1
            while kills < count and _Child(_train_all, root).killed_after(draw.uniform(0, reference.seconds)):
                kills += 1
                _check_scan(root)
            _check_resumed(root, reference)
    return f"{kills} kills at random moments of a training process, in {folders} folders"


def kills_of_the_command(count: int, reference: Reference, draw: random.Random) -> str:
    """Processes of `ablate run` are killed: the command itself, a helper (the server that forks workers), a worker."""
    victims: Counter[str] = Counter()
    while victims.total() < count:
        with _folder() as root:
            while victims.total() < count:
                command, kind = _ablate_run(root), draw.choice(FAMILY)
                killed = _kill_one_of(psutil.Process(command.pid), FAMILY.index(kind), draw)
                command.wait()
                _check_scan(root)
                if not killed:
                    break
                victims[kind] += 1
            _ablate_run(root).wait()
            _ablate_run(root, "retry").wait()
            _check_resumed(root, reference)
    return f"{victims.total()} kills of a process of `ablate run`: " + _listed(victims)


def kills_of_the_command_at_work(count: int, reference: Reference) -> str:
    """`ablate run` is killed while its workers train: what they were doing is left to others, and not said to fail."""
    kills = 0
    while kills < count:
        with _folder() as root:
            while kills < count and _command_killed_at_work(root):
                kills += 1
                while "running" in (states := set(Records(root).states()["state"])):
                    time.sleep(0.1)
                if "failed" in states:
                    raise AssertionError("runs of a killed command are on record as failed")
            _check_resumed(root, reference)
    return f"{kills} kills of `ablate run` while its workers train"


def _command_killed_at_work(root: Path) -> bool:
    """Whether it was killed before it had ended."""
    command = _ablate_run(root)
    while command.poll() is None and "running" not in set(Records(root).states()["state"]):
        time.sleep(0.05)
    command.kill()
    return command.wait() == -signal.SIGKILL


def _kill_one_of(command: psutil.Process, depth: int, draw: random.Random) -> bool:
    """Wait for a process that is so many generations below the command, then kill it within a second."""
    with suppress(psutil.NoSuchProcess):
        while command.status() != psutil.STATUS_ZOMBIE:
            family = [command, *command.children(recursive=True)]
            generation = [one for one in family if sum(parent in family for parent in one.parents()) == depth]
            if generation:
                time.sleep(draw.uniform(0, 1))
                draw.choice(generation).kill()
                return True
            time.sleep(0.05)
    return False


def kills_at_write_points(count: int, reference: Reference, draw: random.Random) -> str:
    """A process is killed at a named point of writing one of a record's files, `count` times at each point."""
    files: Counter[str] = Counter()
    for point in POINTS:
        for _ in range(count):
            with _folder() as root:
                name = draw.choice(FILES)
                child = _Child(_train_all, root, point, name, draw.randint(1, SEEDS))
                if child.exit_code() != -signal.SIGKILL:
                    raise AssertionError(f"the point {point!r} of {name} was never reached")
                files[name] += 1
                _check_scan(root)
                _check_resumed(root, reference)
    return f"{count} kills at each of {', '.join(POINTS)}: " + _listed(files)


def torn_files(offsets: int, reference: Reference, draw: random.Random) -> str:
    """Every file of a record is cut at its start, its end, and at random offsets; each is named and done again."""
    cuts = 0
    with _folder() as whole:
        _Child(_train_all, whole).succeed()
        folder = draw.choice(sorted(whole.glob("planted/*/result.json"))).parent
        for name in FILES:
            size = (folder / name).stat().st_size
            for offset in {0, size // 2, size - 1, *(draw.randrange(size) for _ in range(offsets))}:
                with _folder() as root:
                    shutil.copytree(whole, root, dirs_exist_ok=True)
                    torn = root / "planted" / folder.name / name
                    os.truncate(torn, offset)
                    _expect_warning(root, f"{torn} is torn")
                    _check_resumed(root, reference, lost={folder.name})
                    if not torn.with_name(f"{name}.torn").exists():
                        raise AssertionError(f"{torn} was not set aside")
                cuts += 1
    return f"{cuts} torn files"


def full_disks(count: int, reference: Reference, draw: random.Random) -> str:
    """No file may grow beyond so many bytes; then, as root, a file system without room. Each is named, none fatal."""
    ways: Counter[str] = Counter()
    for limit in [0, 100, *(draw.randrange(200, 900) for _ in range(count - 2))]:
        with _folder() as root:
            _Child(_train_all_within, root, limit).refuse("File too large")
            _check_scan(root)
            _check_resumed(root, reference)
            ways["by a limit on file sizes"] += 1
    with _folder() as root:
        size = ["-o", f"size={draw.randrange(9, 15) * 4}k"]
        if subprocess.run(["mount", "-t", "tmpfs", *size, "none", str(root)], capture_output=True).returncode == 0:
            try:
                _Child(_train_all, root).refuse("No space left on device")
                _check_scan(root)
                subprocess.run(["mount", "-o", "remount,size=50m", str(root)], check=True)
                _check_resumed(root, reference)
                ways["of a small file system"] += 1
            finally:
                subprocess.run(["umount", str(root)], check=True)
    return f"{ways.total()} full disks: " + _listed(ways)


def read_only_folder(reference: Reference) -> str:
    """Who may not write is told so, and what is there is kept."""
    with _folder() as root:
        _Child(_train_all, root).succeed()
        next(root.glob("planted/*/result.json")).unlink()
        root.parent.chmod(0o755)
        for folder in (root, *root.rglob("*")):
            folder.chmod(0o555 if folder.is_dir() else 0o444)
        _Child(_train_all_as_nobody, root).refuse("Permission denied")
        for folder in (root, *root.rglob("*")):
            folder.chmod(0o755 if folder.is_dir() else 0o644)
        _check_resumed(root, reference)
    return "1 read-only folder"


def rivals(rounds: int, writers: int, reference: Reference) -> str:
    """Several processes do the whole grid in one folder at once, each in an order of its own."""
    for _ in range(rounds):
        with _folder() as root:
            children = [_Child(_train_shuffled, root, writer) for writer in range(writers)]
            for child in children:
                child.succeed()
            _check_resumed(root, reference)
    return f"{rounds} rounds of {writers} concurrent writers"


def jumping_clocks(count: int, reference: Reference, draw: random.Random) -> str:
    """The clock jumps by years between runs, and files carry dates of the future and of the past."""
    for _ in range(count):
        with _folder() as root:
            _Child(_train_all, root).killed_after(draw.uniform(0, reference.seconds))
            for path in root.rglob("*"):
                os.utime(path, (moment := time.time() + draw.uniform(-1e9, 1e9), moment))
            _Child(_train_all_at, root, draw.uniform(-1e9, 1e9)).succeed()
            _check_resumed(root, reference)
    return f"{count} jumps of the clock"


def want_of_memory() -> str:
    """An ensemble that does not fit into memory is done in halves."""
    with _folder() as root:
        _Child(_train_hoarders, root).succeed()
        statuses = Records(root).table().status.tolist()
        if statuses != ["done"] * 8:
            raise AssertionError(f"of 8 runs that fit into memory by fours, the statuses are {statuses}")
        sizes = [int(line) for line in (root.parent / "sizes").read_text().split()]
        if max(sizes) > 4:
            raise AssertionError(f"ensembles of {sizes} runs were trained where 4 fit")
    return f"1 want of memory: 8 runs done in ensembles of {', '.join(map(str, sizes))}"


def uninterrupted() -> Reference:
    with _folder() as root:
        child, start = _Child(_train_all, root), time.monotonic()
        child.succeed()
        return Reference(_results(root), time.monotonic() - start)


class _Child:
    """A process that runs `function` on a folder."""

    def __init__(self, function: Callable[..., None], root: Path, *arguments: object) -> None:
        self._ready, theirs = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_live, args=(theirs, function, root, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._ready.recv()

    def killed_after(self, seconds: float) -> bool:
        """Kill it then; whether it was still at work."""
        self._process.join(seconds)
        self._process.kill()
        return self.exit_code() != 0

    def exit_code(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def succeed(self) -> None:
        if self.exit_code() != 0:
            raise AssertionError(f"a process that should have succeeded ended with exit code {self._process.exitcode}")

    def refuse(self, words: str) -> None:
        """It must end by saying what cannot be written, in these words, and what to do."""
        message = self._ready.recv()
        if words not in message or "repeat the command" not in message:
            raise AssertionError(f"{words!r} and what to do are not said in {message!r}")
        self._process.join()


def _live(ready: multiprocessing.connection.Connection, function: Callable[..., None], *arguments: object) -> None:
    import ablations.training  # noqa: F401 -- not part of the moments in which a kill may come

    ready.send("ready")
    warnings.simplefilter("ignore")
    try:
        function(*arguments)
    except RecordsError as error:
        ready.send(str(error))


def _plan(root: Path) -> list:
    return list(plan_study(planted.STUDY, "quick", ["width=eight", "jitter=on"], SEEDS, Records(root), 4).jobs)


def _train_all(root: Path, point: str = "", name: str = "", countdown: int = 0, order: int | None = None) -> None:
    """Do what is not done; every run that is saved as done is noted beside the folder."""
    from ablations.training import train

    records, jobs = Records(root), _plan(root)
    if order is not None:
        random.Random(order).shuffle(jobs)
    records.declare(planted.STUDY.declaration())
    save = records.save

    def save_and_note(configuration, result, **parts):
        save(configuration, result, **parts)
        with open(root.parent / "saved", "a") as file:
            file.write(f"{configuration.key}\n")

    records.save = save_and_note
    if point:
        _die_at(point, name, countdown)
    for job in jobs:
        train(job.configurations, job.task, records)


def _train_shuffled(root: Path, order: int) -> None:
    _train_all(root, order=order)


def _train_all_within(root: Path, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    _train_all(root)


def _train_all_as_nobody(root: Path) -> None:
    if os.getuid() == 0:
        os.setuid(NOBODY)  # root may write anywhere
    _train_all(root)


def _train_all_at(root: Path, jump: float) -> None:
    real = time.time
    time.time = lambda: real() + jump
    _train_all(root)


def _train_hoarders(root: Path) -> None:
    """8 runs that hold 64 MiB each, where 400 MiB are left."""
    from ablations import training

    learn = training.learn

    def learn_and_note(ensemble, report):
        with open(root.parent / "sizes", "a") as file:
            file.write(f"{len(ensemble.tasks)}\n")
        return learn(ensemble, report)

    training.learn = learn_and_note
    preset = replace(planted.STUDY.presets["quick"], settings=planted.DEFAULTS | {"hoard": 64})
    study = replace(planted.STUDY, presets={"quick": preset})
    (job,) = plan_study(study, "quick", ["width=four"], 8, Records(root), 1).jobs
    training.train(job.configurations[:1], job.task, Records(root.parent / "warm"))  # what libraries load once
    limit = psutil.Process().memory_info().vms + 400 * 2**20
    (root.parent / "sizes").unlink()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    training.train(job.configurations, job.task, Records(root))


def _die_at(point: str, name: str, countdown: int) -> None:
    """End this process by SIGKILL when a file of that name comes to that point of being written for the n-th time."""
    mkstemp, fsync, rename = tempfile.mkstemp, os.fsync, os.replace
    state = {"name": "", "left": countdown}

    def reach(where: str) -> bool:
        if where == point and state["name"] == name:
            state["left"] -= 1
        return state["left"] == 0

    def die_if(reached: bool) -> None:
        if reached:
            os.kill(os.getpid(), signal.SIGKILL)

    def mkstemp_or_die(**arguments):
        made = mkstemp(**arguments)
        state["name"] = arguments["prefix"].strip(".")
        die_if(reach("temporary made"))
        return made

    def fsync_or_die(handle):
        folder = os.path.isdir(f"/proc/self/fd/{handle}")
        if not folder and reach("half written"):
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            die_if(True)
        fsync(handle)
        die_if(reach("folder synced" if folder else "synced"))

    def rename_or_die(source, target):
        rename(source, target)
        die_if(reach("renamed"))

    tempfile.mkstemp, os.fsync, os.replace = mkstemp_or_die, fsync_or_die, rename_or_die


def _ablate_run(root: Path, command: str = "run") -> subprocess.Popen:
    choice = ["planted", "width=eight", "jitter=on", "--seeds", str(SEEDS)] if command == "run" else []
    words = [sys.executable, str(SCRIPT), command, *choice, "--workers", "2", "--runs", str(root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PLANTED_PAUSE": "0.1"}  # so that workers are met at work
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root = Path(folder) / "runs"
        root.mkdir()
        yield root


def _results(root: Path) -> pd.DataFrame:
    table = Records(root).table()
    return table.drop(columns=["message", *(column for column in table if "seconds_per" in column)])


def _finished(root: Path) -> dict[str, bytes]:
    """The result files of the runs that are done, by key."""
    records = Records(root)
    with warnings.catch_warnings(action="ignore"):
        done = records.configurations("planted")
        return {run.key: (records.folder(run) / "result.json").read_bytes() for run in done}


def _check_scan(root: Path) -> None:
    """A kill leaves no torn file in any place that is read."""
    with warnings.catch_warnings(action="error"):
        Records(root).table()
        Records(root).states()


def _check_resumed(root: Path, reference: Reference, lost: frozenset[str] | set[str] = frozenset()) -> None:
    """Resume, then compare with the uninterrupted table; `lost` are the runs whose records were torn on purpose."""
    before = _finished(root)
    noted = root.parent / "saved"
    noted.unlink(missing_ok=True)
    _Child(_train_all, root).succeed()
    after = _finished(root)
    if any(after[key] != result for key, result in before.items()):
        raise AssertionError("a finished run was done again")
    saved = Counter(noted.read_text().split() if noted.exists() else ())
    if saved.total() != len(after) - len(before) or any(number > 1 for number in saved.values()):
        raise AssertionError(f"{len(after) - len(before)} runs were left to do, but saved were {dict(saved)}")
    if not lost <= saved.keys():
        raise AssertionError(f"the torn records of {lost - saved.keys()} were not done again")
    pd.testing.assert_frame_equal(_results(root), reference.table, rtol=1e-11)


def _expect_warning(root: Path, words: str) -> None:
    with warnings.catch_warnings(record=True, action="always") as caught:
        Records(root).table()
    if not any(words in str(warning.message) for warning in caught):
        raise AssertionError(f"no warning says {words!r}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items())


def main() -> None:
    draw, start = random.Random(), time.monotonic()
    reference = uninterrupted()
    for happen in (
        lambda: kills_at_random_moments(200, reference, draw),
        lambda: kills_at_write_points(50, reference, draw),
        lambda: torn_files(10, reference, draw),
        lambda: full_disks(10, reference, draw),
        lambda: read_only_folder(reference),
        lambda: rivals(20, 8, reference),
        lambda: jumping_clocks(10, reference, draw),
        want_of_memory,
        lambda: kills_of_the_command(20, reference, draw),
        lambda: kills_of_the_command_at_work(20, reference),
    ):
        print(happen(), flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f"Every resumed table equals the uninterrupted one; no run was lost or done twice ({minutes:.0f} minutes).")


if __name__ == "__main__":
    main()
