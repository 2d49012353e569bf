"""Published data files: found on this machine or downloaded, and used only with the checksums that were published."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ablations.design import DataError
from ablations.extras import require


@dataclass(frozen=True)
class Published:
    """Files of one publisher, by name with their MD5 sums.

    `contents` are the files as they are read; on disk each may also lie gzipped, with .gz behind its name. `downloads`
    are the files at `url`, so named or with .gz.
    """

    name: str
    contents: Mapping[str, str]
    downloads: Mapping[str, str]
    url: str
    package: str = ""  # of Debian, which puts the files under /usr/share/datasets

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the files are looked for, in this order: `$RECURVE_DATA`, the system's data, the user's cache."""
        named = os.environ.get("RECURVE_DATA")
        places = ([Path(named)] if named else []) + [Path("/usr/share/datasets"), cache_folder()]
        return tuple(place / self.name for place in places)

    def read(self, file: str) -> bytes:
        """The unpacked content of one file. Raises `DataError` where it cannot be had, or is not what was published."""
        path = self._found(file) or self._downloaded(file)
        content = path.read_bytes() if path.name == file else gzip.decompress(path.read_bytes())
        found = hashlib.md5(content).hexdigest()
        if found != self.contents[file]:
            raise DataError(
                f"{path} holds other data than was published: MD5 {found}, and only {self.contents[file]} is allowed. "
                "Remove it, so that it is found elsewhere or downloaded"
            )
        return content

    def _found(self, file: str) -> Path | None:
        paths = [folder / name for folder in self.folders for name in (file, f"{file}.gz")]
        return next((path for path in paths if path.is_file()), None)

    def _downloaded(self, file: str) -> Path:
        name = file if file in self.downloads else f"{file}.gz"
        require("pooch", "data")
        import pooch

        try:
            path = pooch.retrieve(
                self.url + name, f"md5:{self.downloads[name]}", fname=name, path=cache_folder() / self.name
            )
        except Exception as error:
            raise DataError(self._absent(name, error)) from error
        return Path(path)

    def _absent(self, name: str, error: Exception) -> str:
        debian = f"install the Debian package {self.package}, or " if self.package else ""
        looked = ", ".join(map(str, self.folders))
        return (
            f"{self.name} is neither in {looked} nor could {self.url}{name} be downloaded ({error}); {debian}put its "
            f"files {', '.join(self.contents)} (also as .gz) into one of these folders, or set RECURVE_DATA to the "
            f"folder that holds {self.name}/"
        )


def cache_folder() -> Path:
    """Where downloads are kept: `recurve` under `$XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recurve"
