"""Images and their labels by the name of a data set, with a validation part drawn from training by seed.

mnist           handwritten digits, built in (origin and licence in `mnist.md`)
fashion-mnist   garments: the published files, or those of the Debian package dataset-fashion-mnist
cifar10         objects in colour: the published binary archive
a path          of a folder with one subfolder per class, or with `train` and `test` that have these
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ablations.data.files import Published
from ablations.data.folder import folder_repairs, folder_version, read_folder
from ablations.design import DataError

ARCHIVE = Path(__file__).with_name("mnist.npz")
Part = Literal["train", "test"]
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FASHION_MNIST = Published(
    "fashion-mnist",
    contents={
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    downloads={
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    package="dataset-fashion-mnist",
)
CIFAR10 = Published(
    "cifar10",
    contents={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    downloads={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    url="https://www.cs.toronto.edu/~kriz/",
)


@dataclass(frozen=True)
class Images:
    """Images (N, C, H, W), uint8 as they are read or float32 in [0, 1], and their labels (N,), int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | torch.Tensor) -> Images:
        return Images(self.images[rows], self.labels[rows])

    def scaled(self) -> Images:
        """The same with float32 in [0, 1]."""
        return Images(self.images.float() / 255, self.labels)


@cache
def load(name: str, part: Part, image_size: int = 0) -> Images:
    """The training or the test part of a data set, as uint8; `image_size` resizes the images of a folder to squares.

    Raises `DataError` where the data are absent, unreadable, or not what was published.
    """
    if name in READERS:
        if image_size:
            raise DataError(f"image_size is for folders of images; those of {name} have one size: leave it at 0")
        images, labels = READERS[name](part)
    elif Path(name).is_dir():
        images, labels = _folder(name, image_size)[part]
    else:
        raise DataError(f"{name!r} names no images; allowed are {', '.join(READERS)} and the path of a folder")
    return Images(torch.from_numpy(images), torch.from_numpy(labels).long())


@cache
def version(name: str) -> str:
    """Another one whenever the data are: a hash of a folder's files, a number for what is published."""
    return folder_version(Path(name)) if name not in READERS and Path(name).is_dir() else "2"


@cache
def repairs(name: str, image_size: int = 0) -> tuple[str, ...]:
    """What is repaired in a folder of images, in words; what is published is used as it is."""
    return folder_repairs(Path(name), image_size) if name not in READERS and Path(name).is_dir() else ()


@cache
def held_out(name: str, count: int, image_size: int = 0) -> Images:
    """The first `count` of the standard test part, scaled; one copy serves all runs of a process."""
    test = load(name, "test", image_size)
    if count > len(test):
        raise DataError(f"{count} test images were asked of the {len(test)} of {name}; ask for fewer")
    return test[:count].scaled()


@lru_cache(maxsize=1)
def parts(name: str, image_size: int, validation: int, train: int, seed: int) -> tuple[Images, Images]:
    """`split` of a data set's training part; one copy serves all conditions of a seed that come one after the other."""
    return split(load(name, "train", image_size), validation, train, seed)


def split(images: Images, validation: int, train: int, seed: int) -> tuple[Images, Images]:
    """Disjoint training and validation parts of the given sizes, drawn by `seed` and scaled.

    The validation part does not depend on the size of the training part. Raises `DataError` if images lack.
    """
    if train + validation > len(images):
        raise DataError(
            f"{train} training + {validation} validation images were asked of {len(images)}; ask for fewer, such as "
            f"--set train_images={max(len(images) - validation, 1)}"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[validation : validation + train]].scaled(), images[order[:validation]].scaled()


def parse_idx(content: bytes) -> np.ndarray:
    """The uint8 array in an idx file: magic number 0x0000 08 ndim, big-endian sizes, then the bytes."""
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def parse_cifar10(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of a binary batch: per image its label, then red, green and blue planes."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:].reshape(-1, 3, 32, 32).copy(), rows[:, 0].copy()


def _mnist(part: Part) -> tuple[np.ndarray, np.ndarray]:
    with np.load(ARCHIVE) as arrays:
        return arrays[f"{part}_images"][:, None], arrays[f"{part}_labels"]


def _fashion_mnist(part: Part) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (parse_idx(FASHION_MNIST.read(file)) for file in IDX_FILES[part])
    return images[:, None].copy(), labels.copy()


def _cifar10(part: Part) -> tuple[np.ndarray, np.ndarray]:
    files = ["test_batch.bin"] if part == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
    with tarfile.open(fileobj=io.BytesIO(CIFAR10.read("cifar-10-binary.tar.gz"))) as archive:
        batches = [archive.extractfile(f"cifar-10-batches-bin/{file}") for file in files]
        parts = [parse_cifar10(batch.read()) for batch in batches if batch]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return images, labels


_folder = cache(lambda name, image_size: read_folder(Path(name), image_size))
READERS: Mapping[str, Callable[[Part], tuple[np.ndarray, np.ndarray]]] = {
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
}
