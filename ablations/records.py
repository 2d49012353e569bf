"""What a run leaves on disk: one folder per run, finished when its result file is there.

Layout under the runs folder:

    <study>/study-<version>.json    the study's declaration: factors, hypotheses, responses
    <study>/<key>/config.json       study, versions, preset, settings, levels, seed
    <study>/<key>/environment.json  versions, CPU, threads, git state
    <study>/<key>/curve.csv         the learning curve, one row per epoch
    <study>/<key>/predictions.npz   arrays the study's figures need
    <study>/<key>/timing.json       seconds per step, from the exclusive timing pass
    <study>/<key>/result.json       status and responses; written last, atomically

This is the only module that opens files there.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd

Status = Literal["done", "diverged", "failed"]


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

    @property
    def key(self) -> str:
        """Hash of what decides the result: settings, seed, data and study versions; not the preset's name."""
        parts = {k: v for k, v in asdict(self).items() if k != "preset"}
        canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """How a run ended. A diverged or failed run keeps what it has; `message` says what happened."""

    status: Status
    responses: Mapping[str, float]
    message: str = ""


class Records:
    """The runs folder. Several processes may write to it: each file appears whole or not at all."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, configuration: Configuration) -> Path:
        return self.root / configuration.study / configuration.key

    def is_finished(self, configuration: Configuration) -> bool:
        """Whether the run has a readable result; one that failed counts as not finished and is run again."""
        result = _read_json(self.folder(configuration) / "result.json")
        return result is not None and result["status"] != "failed"

    def declare(self, declaration: Mapping[str, Any]) -> None:
        """Keep the study's declaration beside its runs, so that a report needs nothing else."""
        path = self.root / declaration["name"] / f"study-{declaration['version']}.json"
        _write_json(path, declaration)

    def save(
        self,
        configuration: Configuration,
        result: Result,
        *,
        environment: Mapping[str, Any],
        curve: pd.DataFrame | None = None,
        predictions: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write one run; `result.json` comes last, so that its presence means the whole record is there."""
        folder = self.folder(configuration)
        _write_json(folder / "config.json", asdict(configuration))
        _write_json(folder / "environment.json", environment)
        if curve is not None:
            _write(folder / "curve.csv", lambda file: curve.to_csv(file, index=False))
        if predictions is not None:
            _write(folder / "predictions.npz", lambda file: np.savez_compressed(file, **predictions))  # type: ignore[arg-type]
        _write_json(folder / "result.json", asdict(result))

    def save_timing(self, configuration: Configuration, timing: Mapping[str, float]) -> None:
        _write_json(self.folder(configuration) / "timing.json", timing)

    def has_timing(self, configuration: Configuration) -> bool:
        return _read_json(self.folder(configuration) / "timing.json") is not None

    def studies(self) -> list[str]:
        """Names of the studies that have runs here."""
        return sorted({path.parent.name for path in self.root.glob("*/study-*.json")})

    def declaration(self, study: str, version: str | None = None) -> dict[str, Any]:
        """The study's declaration: of that version, or the newest written."""
        paths = sorted((self.root / study).glob(f"study-{version or '*'}.json"), key=lambda path: path.stat().st_mtime)
        declaration = _read_json(paths[-1]) if paths else None
        if declaration is None:
            raise FileNotFoundError(f"no study {study!r} under {self.root}; `ablate run {study}` makes one")
        return declaration

    def configurations(self, study: str, version: str) -> list[Configuration]:
        """Of every finished run of that version, those that diverged included."""
        configs = [_read_json(folder / "config.json") for folder in self._folders(study)]
        found = [Configuration(**config) for config in configs if config and config["study_version"] == version]
        return [configuration for configuration in found if self.is_finished(configuration)]

    def table(self, study: str | None = None) -> pd.DataFrame:
        """The tidy table: a row per finished run; the columns are study, study_version, preset, key, status, seed,
        message, one per factor (its level's name), one per response, and those of timing.json."""
        rows = [self._row(folder) for folder in self._folders(study)]
        frame = pd.DataFrame([row for row in rows if row is not None])
        return frame if frame.empty else frame.sort_values(["study", "key"], ignore_index=True)

    def curves(self, study: str) -> pd.DataFrame:
        """Learning curves of all finished runs of a study, long form, with the column `key`."""
        folders = [folder for folder in self._folders(study) if (folder / "curve.csv").exists()]
        frames = [pd.read_csv(folder / "curve.csv").assign(key=folder.name) for folder in folders]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def predictions(self, study: str, key: str) -> dict[str, np.ndarray]:
        """Arrays of one run; empty if it left none."""
        path = self.root / study / key / "predictions.npz"
        if not path.exists():
            return {}
        with np.load(path) as arrays:
            return dict(arrays)

    def environment(self, study: str, key: str) -> dict[str, Any]:
        return _read_json(self.root / study / key / "environment.json") or {}

    def _folders(self, study: str | None) -> Iterator[Path]:
        for path in sorted(self.root.glob(f"{study or '*'}/*/result.json")):
            yield path.parent

    def _row(self, folder: Path) -> dict[str, Any] | None:
        config, result = _read_json(folder / "config.json"), _read_json(folder / "result.json")
        if config is None or result is None:
            return None
        row = {name: config[name] for name in ("study", "study_version", "preset", "seed")}
        row |= {"key": folder.name, "status": result["status"], "message": result["message"]}
        timing = _read_json(folder / "timing.json") or {}
        return row | config["levels"] | result["responses"] | timing


def _read_json(path: Path) -> dict[str, Any] | None:
    """The file's content; None if it is absent, or torn, which is said."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        warnings.warn(f"{path} is torn and is taken as absent; its run will be done again", stacklevel=2)
        return None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, lambda file: file.write(json.dumps(content, indent=1, sort_keys=True).encode()))


def _write(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """Write a file so that a reader sees all of it or none, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
