"""What a run leaves on disk: one folder per run, finished when its result file is there.

Layout under the runs folder:

    <study>/study.json              the study's declaration: factors, hypotheses, responses
    <study>/lock                    locked by the process that writes the declaration
    <study>/plan-<digest>.json      the runs that a command set out to do
    <study>/<key>/lock              locked by the process that trains the run; the lock dies with its owner
    <study>/<key>/config.json       study, versions, preset, settings, levels, seed
    <study>/<key>/environment.json  versions, CPU, threads, git state
    <study>/<key>/curve.csv         the learning curve, one row per epoch
    <study>/<key>/predictions.npz   arrays the study's figures need
    <study>/<key>/timing.json       seconds per step, from the exclusive timing pass
    <study>/<key>/result.json       status, responses, pairing hashes, sizes of the files above; written last

Every file appears whole or not at all (written beside its place, synced, renamed, folder synced).

This is the only module that opens files there.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd

Status = Literal["done", "diverged", "failed"]
FINISHED: tuple[Status, ...] = ("done", "diverged")
PROBE_SECONDS = 0.05  # longer than `states` holds a lock to see whether anyone else does
DECLARE_SECONDS = 10.0  # for another process to write the same declaration
STATE_COLUMNS = ("study", "study_version", "preset", "key", "state")


class RecordsError(RuntimeError):
    """The runs folder cannot be written: which file, why, and what to do."""


class TornRecord(UserWarning):
    """A file of a run is not as it was written, and its run is as good as not done."""


@dataclass(frozen=True)
class Configuration:
    """Everything that decides a run's result, and the words under which it was asked for."""

    study: str
    study_version: str
    data_version: str
    preset: str
    settings: Mapping[str, Any]
    levels: Mapping[str, str]
    seed: int

    @cached_property
    def key(self) -> str:
        """Hash of the full configuration, data and study versions included."""
        canonical = json.dumps(self.fields(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Result:
    """How a run ended. A diverged or failed run keeps what it has; `message` says what happened.

    `pairing` holds hashes of what runs of one seed must share to be paired: `split`, `order`, `augmentation`, and
    `weights` where shapes allow. In the tidy table they are the columns `pairing_split` and so on.
    """

    status: Status
    responses: Mapping[str, float]
    message: str = ""
    pairing: Mapping[str, str] = field(default_factory=dict)


class Records:
    """The runs folder. Several processes may write to it: each file appears whole or not at all."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, configuration: Configuration) -> Path:
        return self.root / configuration.study / configuration.key

    def status(self, configuration: Configuration) -> Status | None:
        """How the run ended; None if it has not, or if its record is not whole."""
        record = _whole_record(self.folder(configuration))
        return record[1]["status"] if record else None

    def is_finished(self, configuration: Configuration) -> bool:
        """Whether the run was done or diverged; one that failed may be tried again."""
        return self.status(configuration) in FINISHED

    def declare(self, declaration: Mapping[str, Any]) -> None:
        """Keep the study's declaration beside its runs, so that a report needs nothing else.

        Levels that an earlier command has added to the same version stay.
        """
        folder = self.root / declaration["name"]
        lock = _lock(folder, time.monotonic() + DECLARE_SECONDS)
        if lock is None:
            raise RecordsError(f"cannot write {folder}: another process holds its lock; repeat the command")
        with closing(lock):
            earlier = _read_json(folder / "study.json")
            if earlier and earlier["version"] == declaration["version"]:
                declaration = _with_levels_of(earlier, declaration)
            _write_json(folder / "study.json", declaration)

    def plan(self, configurations: Iterable[Configuration]) -> None:
        """Keep which runs were asked for, so that `states` knows those that wait."""
        plans: dict[tuple[str, str, str], list[str]] = {}
        for run in configurations:
            plans.setdefault((run.study, run.study_version, run.preset), []).append(run.key)
        for (study, version, preset), keys in plans.items():
            digest = hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()[:16]
            content = {"study_version": version, "preset": preset, "keys": keys}
            _write_json(self.root / study / f"plan-{digest}.json", content)

    @contextmanager
    def claim(
        self, configurations: Iterable[Configuration], patience: float = PROBE_SECONDS
    ) -> Iterator[list[Configuration]]:
        """Those of the runs that are neither finished nor another process's; nobody else gets them inside the block.

        A claim ends with its process, however that ends; `patience` is how many seconds to wait for that, for all
        runs together. What a crash has torn in the runs' folders is set aside.
        """
        deadline = time.monotonic() + patience
        with ExitStack() as locks:
            mine = []
            for configuration in configurations:
                folder = self.folder(configuration)
                lock = _lock(folder, deadline)
                if lock is None:
                    continue
                locks.enter_context(closing(lock))
                if self.is_finished(configuration):
                    lock.close()
                else:
                    _set_torn_aside(folder)
                    mine.append(configuration)
            yield mine

    def save(
        self,
        configuration: Configuration,
        result: Result,
        *,
        environment: Mapping[str, Any],
        curve: pd.DataFrame | None = None,
        predictions: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write one run; `result.json` comes last, so that its presence means the whole record is there.

        Raises `RecordsError` if the folder cannot be written; nothing written before is lost.
        """
        folder = self.folder(configuration)
        _remove(folder / "result.json")  # of an attempt that failed: it does not speak for the files that come now
        files = {
            "config.json": _write_json(folder / "config.json", configuration.fields()),
            "environment.json": _write_json(folder / "environment.json", environment),
        }
        if curve is not None:
            files["curve.csv"] = _write(folder / "curve.csv", lambda file: curve.to_csv(file, index=False))
        if predictions is not None:
            files["predictions.npz"] = _write(
                folder / "predictions.npz",
                lambda file: np.savez_compressed(file, **predictions),  # type: ignore[arg-type]
            )
        _write_json(folder / "result.json", asdict(result) | {"files": files})

    def save_timing(self, configuration: Configuration, timing: Mapping[str, float]) -> None:
        _write_json(self.folder(configuration) / "timing.json", timing)

    def has_timing(self, configuration: Configuration) -> bool:
        return _read_json(self.folder(configuration) / "timing.json") is not None

    def studies(self) -> list[str]:
        """Names of the studies that have runs here."""
        return sorted(path.parent.name for path in self.root.glob("*/study.json"))

    def declaration(self, study: str) -> dict[str, Any]:
        """The study's declaration, as last written."""
        declaration = _read_json(self.root / study / "study.json")
        if declaration is None:
            raise FileNotFoundError(f"no study {study!r} under {self.root}; `ablate run {study}` makes one")
        return declaration

    def configurations(
        self, study: str, version: str | None = None, statuses: Collection[Status] = FINISHED
    ) -> list[Configuration]:
        """Of every run on record that ended so, of that study version or of any."""
        found = []
        for folder in self._folders(study):
            config, result = _whole_record(folder) or (None, {})
            if config and result["status"] in statuses and version in (None, config["study_version"]):
                found.append(Configuration(**config))
        return found

    def table(self, study: str | None = None) -> pd.DataFrame:
        """The tidy table, a row per run on record: study, study_version, data_version, preset, key, status, seed,
        message, a column per factor (its level's name), per response, per pairing hash (`pairing_...`), and those of
        timing.json."""
        rows = [self._row(folder) for folder in self._folders(study)]
        frame = pd.DataFrame([row for row in rows if row is not None])
        return frame if frame.empty else frame.sort_values(["study", "key"], ignore_index=True)

    def states(self) -> pd.DataFrame:
        """Where every run on record or asked for stands: study, study_version, preset, key, and the state `done`,
        `diverged`, `failed`, `running` (a process has claimed it) or `waiting`."""
        rows: dict[str, dict[Hashable, Any]] = {}
        for path in sorted(self.root.glob("*/plan-*.json")):
            plan = _read_json(path) or {"keys": []}
            for key in plan["keys"]:
                group = {"study": path.parent.name, "study_version": plan["study_version"], "preset": plan["preset"]}
                rows[key] = group | {"key": key, "state": "waiting"}
        for row in self.table().rename(columns={"status": "state"}).to_dict("records"):
            rows[row["key"]] = {name: row[name] for name in STATE_COLUMNS}
        for key, row in rows.items():
            if row["state"] not in FINISHED and _is_locked(self.root / row["study"] / key):
                row["state"] = "running"
        return pd.DataFrame(rows.values(), columns=list(STATE_COLUMNS))

    def presets(self) -> Iterator[str]:
        """Of the runs asked for and on record, some several times; who finds one early reads no more."""
        for path in [*self.root.glob("*/plan-*.json"), *self.root.glob("*/*/config.json")]:
            content = _read_json(path)
            if content:
                yield content["preset"]

    def curves(self, study: str, keys: Collection[str] | None = None) -> pd.DataFrame:
        """Learning curves of runs of a study, long form, with the column `key`: of all on record, or of these keys."""
        if keys is None:
            folders = [folder for folder in self._folders(study) if _whole_record(folder)]
        else:
            folders = [self.root / study / key for key in keys]
        bodies: dict[str, list[str]] = {}  # by header: one parse for all runs takes a tenth of the time of one for each
        owners: dict[str, list[str]] = {}
        for folder in folders:
            path = folder / "curve.csv"
            if path.exists():
                try:
                    header, _, body = path.read_text().partition("\n")
                except UnicodeDecodeError:
                    _warn_torn(path)
                    continue
                bodies.setdefault(header, []).append(body)
                owners.setdefault(header, []).extend([folder.name] * body.count("\n"))
        frames = [
            pd.read_csv(io.StringIO("\n".join([header, "".join(texts)]))).assign(key=owners[header])
            for header, texts in bodies.items()
        ]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def predictions(self, study: str, key: str, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Arrays of one run, all or those of these names that it left; no others are read."""
        path = self.root / study / key / "predictions.npz"
        if not path.exists():
            return {}
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files if names is None or name in names}

    def environment(self, study: str, key: str) -> dict[str, Any]:
        return _read_json(self.root / study / key / "environment.json") or {}

    def _folders(self, study: str | None) -> Iterator[Path]:
        for path in sorted(self.root.glob(f"{study or '*'}/*/result.json"), key=str):
            yield path.parent

    def _row(self, folder: Path) -> dict[str, Any] | None:
        record = _whole_record(folder)
        if record is None:
            return None
        config, result = record
        row = {name: config[name] for name in ("study", "study_version", "data_version", "preset", "seed")}
        row |= {"key": folder.name, "status": result["status"], "message": result["message"]}
        row |= config["levels"] | result["responses"] | (_read_json(folder / "timing.json") or {})
        return row | {f"pairing_{what}": digest for what, digest in result["pairing"].items()}


def _with_levels_of(earlier: Mapping[str, Any], declaration: Mapping[str, Any]) -> dict[str, Any]:
    """The declaration, and the levels that only the earlier one has, after those of their factor."""
    before = {factor["name"]: factor["levels"] for factor in earlier["factors"]}
    factors = []
    for factor in declaration["factors"]:
        names = {level["name"] for level in factor["levels"]}
        added = [level for level in before.get(factor["name"], ()) if level["name"] not in names]
        factors.append({**factor, "levels": [*factor["levels"], *added]})
    return {**declaration, "factors": factors}


def _read_json(path: Path) -> dict[str, Any] | None:
    """The file's content; None if it is absent, or torn, which is said."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        _warn_torn(path)
        return None
    return content


def _whole_record(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A run's configuration and result, if the files the latter speaks of have the size they were written with."""
    result = _read_json(folder / "result.json")
    if result is None:
        return None
    torn = _torn_files(folder, result)
    for path in torn:
        _warn_torn(path)
    config = None if torn else _read_json(folder / "config.json")
    return None if config is None else (config, result)


def _torn_files(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Files that are missing or have another size than the result says; a result of another layout is torn itself."""
    if not isinstance(result.get("files"), dict):
        return [folder / "result.json"]
    return [folder / name for name, size in result["files"].items() if _size(f"{folder}/{name}") != size]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1


def _warn_torn(path: Path) -> None:
    warnings.warn(f"{path} is torn and is taken as absent; its run will be done again", TornRecord, stacklevel=3)


def _set_torn_aside(folder: Path) -> None:
    """Rename what a crash tore to `<name>.torn` and drop what it left half written. Needs the folder's lock."""
    for path in folder.glob(".*"):
        _remove(path)
    path = folder / "result.json"
    if path.exists():
        result = _read_json(path)
        torn_files = [path] if result is None else _torn_files(folder, result)
        if not torn_files and _read_json(folder / "config.json") is None:
            torn_files = [folder / "config.json"]
        for torn in torn_files:
            if torn.exists():
                os.replace(torn, torn.with_name(f"{torn.name}.torn"))


def _lock(folder: Path, deadline: float) -> IO[bytes] | None:
    """The folder's lock, held until it is closed or the process ends; None if another process keeps it until then."""
    with _writing(folder / "lock"):
        _make_folder(folder)
        file = open(folder / "lock", "ab")  # noqa: SIM115 -- the caller closes it
        while not _flock(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.close()
                return None
            time.sleep(0.01)
    return file


def _is_locked(folder: Path) -> bool:
    try:
        with open(folder / "lock", "rb") as file:
            return not _flock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _flock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_json(path: Path, content: Mapping[str, Any]) -> int:
    return _write(path, lambda file: file.write(json.dumps(content, indent=1, sort_keys=True).encode()))


def _write(path: Path, fill: Callable[[IO[bytes]], Any]) -> int:
    """Write a file so that a reader sees all of it or none, also after a crash; its size in bytes."""
    with _writing(path):
        _make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync(path.parent)
        return size


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns what the system says against a write into `RecordsError`."""
    try:
        yield
    except OSError as error:
        raise RecordsError(
            f"cannot write {path}: {error.strerror}. What is done is kept; make room, or give the rights to write "
            "there, or name another folder with --runs, then repeat the command"
        ) from error


def _remove(path: Path) -> None:
    with _writing(path):
        path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make the folder and those above it, each entered in its parent for good."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
