"""A folder of images as data: one subfolder per class, in `train` and `test` or with a fifth taken for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ablations.design import DataError
from ablations.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

TEST_SHARE = 0.2  # of a folder without parts of its own
MEMORY_SHARE = 0.25  # of what is free, for all images
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")  # modes of Pillow


class Form(NamedTuple):
    """What all images of a data set share: width and height in pixels, and Pillow's mode."""

    size: tuple[int, int]
    mode: str


def read_folder(folder: Path, image_size: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The parts "train" and "test": images (N, C, H, W), uint8, and labels (N,), ordered by class and file name.

    Classes are the subfolders of `folder/train` and `folder/test`, or of the folder itself: then each image belongs to
    the test part or not by a hash of its class and name, about a fifth do, and adding images moves none. All images
    are grey if all files are, else in colour. With `image_size` each is resized to such a square. `folder_repairs` says
    how many were converted or resized. Files whose names begin with a dot are not looked at.

    Raises `DataError` for a file that is no image or has more than 8 bits a colour, images of several sizes, a class
    without images, fewer than two classes, test classes that training lacks, and more than fits into memory.
    """
    files = _all_files(folder)
    size, mode = _common_form(_forms(_flat(files)), image_size)
    return {
        part: (
            _stacked(list(chain.from_iterable(of_part)), size, mode),
            np.repeat(range(len(of_part)), [*map(len, of_part)]),
        )
        for part, of_part in files.items()
    }


def folder_repairs(folder: Path, image_size: int) -> tuple[str, ...]:
    """How many images `read_folder` resizes or converts, in words. Raises `DataError` as it does."""
    forms = _forms(_flat(_all_files(folder)))
    size, mode = _common_form(forms, image_size)
    resized = sum(form.size != size for form in forms.values())
    converted = [form.mode for form in forms.values() if form.mode not in ("1", mode)]
    repairs = []
    if resized:
        repairs.append(f"{resized} of {len(forms)} images are resized to {size[0]} x {size[1]} pixels")
    if converted:
        kinds = ", ".join(sorted(set(converted)))
        repairs.append(f"{len(converted)} of {len(forms)} images are converted to {mode}, from {kinds}")
    return tuple(repairs)


def folder_version(folder: Path) -> str:
    """A hash of the names and contents of all files that `read_folder` reads."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(_flat(_all_files(folder))):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _all_files(folder: Path) -> dict[str, list[list[Path]]]:
    """Of each part, those of each class."""
    require("PIL", "data")
    if (folder / "train").is_dir() != (folder / "test").is_dir():
        raise DataError(f"{folder} needs both train and test, or neither: then its subfolders are the classes")
    classes = _classes(folder, "train")
    if (folder / "test").is_dir():
        strangers = set(_classes(folder, "test")) ^ set(classes)
        if strangers:
            raise DataError(
                f"{folder}: train and test need the same classes; only one has {', '.join(sorted(strangers))}"
            )
    return {part: [_files(folder, part, name) for name in classes] for part in ("train", "test")}


def _flat(files: Mapping[str, Sequence[Sequence[Path]]]) -> list[Path]:
    return [path for of_part in files.values() for of_class in of_part for path in of_class]


def _classes(folder: Path, part: str) -> list[str]:
    root = folder / part if (folder / part).is_dir() else folder
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{root} has {len(names)} subfolders; at least two are needed, one per class")
    return names


def _files(folder: Path, part: str, name: str) -> list[Path]:
    has_parts = (folder / part).is_dir()
    root = (folder / part if has_parts else folder) / name
    found = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    if not has_parts:
        found = [path for path in found if _is_test(name, path) == (part == "test")]
    if not found:
        raise DataError(f"{root} has no image for the {part} part; add some, or remove the class")
    return found


def _is_test(name: str, path: Path) -> bool:
    digest = hashlib.sha256(f"{name}/{path.name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64


def _forms(paths: Sequence[Path]) -> dict[Path, Form]:
    """Size and mode of each image, from its header."""
    forms = {}
    for path in paths:
        with _opened(path, whole=False) as image:
            forms[path] = Form(image.size, image.mode)
        if image.mode not in EIGHT_BITS:
            raise DataError(
                f"{path} has pixels of mode {image.mode}, which 8 bits cannot hold; save it with 8 bits a colour"
            )
    return forms


def _common_form(forms: Mapping[Path, Form], image_size: int) -> Form:
    """The size and the mode, "L" or "RGB", in which all images are read."""
    sizes = {form.size: path for path, form in forms.items()}
    if len(sizes) > 1 and not image_size:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise DataError(
            f"images need one size, but {first} has {one[0]} x {one[1]} pixels and {second} {other[0]} x {other[1]}; "
            "resize all, as with --set image_size=32"
        )
    size = (image_size, image_size) if image_size else next(iter(sizes))
    mode = "L" if {form.mode for form in forms.values()} <= {"1", "L"} else "RGB"
    _check_memory(len(forms) * size[0] * size[1] * len(mode) * 4, len(forms))
    return Form(size, mode)


def _stacked(paths: Sequence[Path], size: tuple[int, int], mode: str) -> np.ndarray:
    """The images (N, C, H, W) in one form."""
    images = np.empty((len(paths), size[1], size[0], len(mode)), np.uint8)
    for place, path in zip(images, paths, strict=True):
        with _opened(path) as image:
            place[:] = np.asarray(_sized(image.convert(mode), size)).reshape(place.shape)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _sized(image: Image, size: tuple[int, int]) -> Image:
    from PIL.Image import Resampling

    return image if image.size == size else image.resize(size, Resampling.BICUBIC)


def _opened(path: Path, whole: bool = True) -> Image:
    """The image, or its header alone, which tells its size and mode."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path)
        if whole:
            image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as an image ({error}); remove it, or begin its name with a dot so that it is not "
            "looked at"
        ) from error
    return image


def _check_memory(needed: int, count: int) -> None:
    import psutil

    allowed = MEMORY_SHARE * psutil.virtual_memory().available
    if needed > allowed:
        raise DataError(
            f"{count} images need {needed / 1e9:.1f} GB as numbers, {allowed / 1e9:.1f} GB are allowed here; "
            "resize them, as with --set image_size=32, or use fewer"
        )
