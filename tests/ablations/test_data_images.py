"""Claims on the images: those published are read as published, others are read as they are or refused with a reason."""

import gzip
import hashlib
import io
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ablations.data import images
from ablations.data.build_mnist import MD5, write_archive
from ablations.data.folder import folder_repairs, folder_version, read_folder
from ablations.design import DataError


@pytest.fixture(scope="module")
def arrays():
    with np.load(images.ARCHIVE) as archive:
        return dict(archive)


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("train_images", "train-images-idx3-ubyte"),
        ("train_labels", "train-labels-idx1-ubyte"),
        ("test_images", "t10k-images-idx3-ubyte"),
        ("test_labels", "t10k-labels-idx1-ubyte"),
    ],
)
def test_mnist_has_the_published_checksums(arrays, name, published):
    assert hashlib.md5(idx(arrays[name])).hexdigest() == MD5[published]


def test_idx_files_are_parsed_to_the_array_they_hold():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(images.parse_idx(idx(array)), array)


def test_the_archive_is_the_same_bytes_whenever_it_is_written(arrays, tmp_path, monkeypatch):
    small = {name: array[:100] for name, array in arrays.items()}
    write_archive(tmp_path / "one.npz", small)
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_archive(tmp_path / "two.npz", small)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as written:
        np.testing.assert_array_equal(written["test_images"], small["test_images"])


def test_scaled_images_are_floats_from_zero_to_one():
    test = images.held_out("mnist", 500)
    assert test.images.shape == (500, 1, 28, 28)
    assert test.images.dtype == torch.float32
    assert (test.images.min(), test.images.max()) == (0, 1)
    assert test.labels.dtype == torch.int64


def numbered(count=100):
    return images.Images(torch.arange(count)[:, None, None, None].to(torch.uint8), torch.arange(count))


def test_training_and_validation_parts_are_disjoint():
    train, validation = images.split(numbered(), validation=30, train=70, seed=1)
    assert sorted(torch.cat([train.labels, validation.labels]).tolist()) == list(range(100))
    assert torch.equal((train.images * 255).round().flatten().long(), train.labels)


def test_the_validation_part_depends_on_the_seed_and_not_on_the_training_size():
    validations = [images.split(numbered(), 30, train, seed)[1].labels for train, seed in ((70, 1), (10, 1), (70, 2))]
    assert torch.equal(validations[0], validations[1])
    assert not torch.equal(validations[0], validations[2])


def test_asking_for_too_many_images_says_how_many_there_are():
    with pytest.raises(DataError, match=r"80 training \+ 30 validation images were asked of 100; .*train_images=70"):
        images.split(numbered(), validation=30, train=80, seed=0)
    with pytest.raises(DataError, match="10001 test images were asked of the 10000 of mnist"):
        images.held_out("mnist", 10_001)


def test_an_unknown_data_set_lists_those_there_are():
    with pytest.raises(
        DataError, match="'mnits' names no images; allowed are mnist, fashion-mnist, cifar10 and the path"
    ):
        images.load("mnits", "train")


def fashion_files():
    """The four files of a tiny data set in the published layout."""
    rng = np.random.default_rng(0)
    return {
        name: idx(rng.integers(0, 10, (7, 28, 28) if "images" in name else 7, dtype=np.uint8))
        for names in images.IDX_FILES.values()
        for name in names
    }


@pytest.fixture
def published(publisher):
    """A tiny data set at the publisher's, and its files."""
    files, (served, url) = fashion_files(), publisher
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    for name, content in packed.items():
        (served / name).write_bytes(content)
    sums = [
        {name: hashlib.md5(content).hexdigest() for name, content in of_files.items()} for of_files in (files, packed)
    ]
    return replace(images.FASHION_MNIST, name="tiny", contents=sums[0], downloads=sums[1], url=url), files


def test_published_files_are_downloaded_once_and_kept(published, tmp_path):
    source, files = published
    for name, content in files.items():
        assert source.read(name) == content
    for path in (tmp_path / "served").iterdir():
        path.unlink()
    assert source.read("t10k-labels-idx1-ubyte") == files["t10k-labels-idx1-ubyte"]


@pytest.mark.parametrize("pack", [lambda content: content, gzip.compress], ids=["plain", "gzipped"])
def test_files_of_ones_own_are_found_and_nothing_is_downloaded(published, tmp_path, pack):
    source, files = published
    source = replace(source, url="http://127.0.0.1:1/")
    (tmp_path / "own" / "tiny").mkdir(parents=True)
    suffix = "" if pack(b"") == b"" else ".gz"
    for name, content in files.items():
        (tmp_path / "own" / "tiny" / f"{name}{suffix}").write_bytes(pack(content))
        assert source.read(name) == content


def test_a_file_with_another_checksum_is_refused(published, tmp_path):
    source, _ = published
    (tmp_path / "own" / "tiny").mkdir(parents=True)
    (tmp_path / "own" / "tiny" / "train-labels-idx1-ubyte").write_bytes(b"x")
    with pytest.raises(DataError, match="train-labels-idx1-ubyte holds other data than was published"):
        source.read("train-labels-idx1-ubyte")


def test_a_failed_or_forged_download_says_where_the_files_may_be_put(published, tmp_path):
    source, _ = published
    (tmp_path / "served" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"forged"))
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        with pytest.raises(DataError, match=r"own/tiny, .*install the Debian package dataset-fashion-mnist"):
            replace(source, url=source.url if "train" in name else "http://127.0.0.1:1/").read(name)


def test_a_forged_download_leaves_nothing_behind_that_a_later_one_would_find(published, tmp_path):
    source, files = published
    path = tmp_path / "served" / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b""):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="hash of downloaded file"):
            source.read("train-images-idx3-ubyte")
    path.write_bytes(whole)
    assert source.read("train-images-idx3-ubyte") == files["train-images-idx3-ubyte"]


@pytest.mark.skipif(
    not any(folder.is_dir() for folder in images.FASHION_MNIST.folders), reason="Fashion-MNIST is not on this machine"
)
def test_fashion_mnist_is_read_as_published():
    test = images.load("fashion-mnist", "test")
    assert test.images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(test.labels).tolist() == [1000] * 10


def test_cifar10_is_read_from_its_published_layout(monkeypatch):
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    batches = {name: rng.integers(0, 10, (4, 3073), dtype=np.uint8) for name in "12345t"}
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, rows in batches.items():
            file = "test_batch" if name == "t" else f"data_batch_{name}"
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{file}.bin")
            member.size = rows.nbytes
            archive.addfile(member, io.BytesIO(rows.tobytes()))
    monkeypatch.setattr(type(images.CIFAR10), "read", lambda *_: buffer.getvalue())
    for part, names in (("train", "12345"), ("test", "t")):
        found, labels = images.READERS["cifar10"](part)
        rows = np.concatenate([batches[name] for name in names])
        np.testing.assert_array_equal(labels, rows[:, 0])
        np.testing.assert_array_equal(
            found[:, 1, 2, 3], rows[:, 1 + 1024 + 2 * 32 + 3]
        )  # green, third row, fourth column


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten grey images of 6 x 5 pixels, each filled with its number."""
    for label, name in enumerate(("cats", "dogs")):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("L", (6, 5), 10 * label + i).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_a_folder_gives_its_classes_and_two_parts_that_are_disjoint_and_whole(folder):
    parts = [read_folder(folder)[part] for part in ("train", "test")]
    shown = [found[:, 0, 0, 0].tolist() for found, _ in parts]
    assert sorted(shown[0] + shown[1]) == list(range(20))
    assert parts[0][0].shape[1:] == (1, 5, 6)
    for found, labels in parts:
        np.testing.assert_array_equal(found[:, 0, 0, 0] // 10, labels)


def test_adding_an_image_moves_none_from_one_part_to_the_other(folder):
    before = read_folder(folder)["test"][0][:, 0, 0, 0].tolist()
    Image.new("L", (6, 5), 99).save(folder / "cats" / "99.png")
    assert set(before) <= set(read_folder(folder)["test"][0][:, 0, 0, 0].tolist())


def test_parts_of_its_own_are_kept(folder):
    for part in ("train", "test"):
        (folder / part).mkdir()
    for name in ("cats", "dogs"):
        (folder / "test" / name).mkdir()
        (folder / name / "3.png").rename(folder / "test" / name / "3.png")
        (folder / name).rename(folder / "train" / name)
    assert read_folder(folder)["test"][0][:, 0, 0, 0].tolist() == [3, 13]
    assert len(read_folder(folder)["train"][1]) == 18


def test_a_changed_image_is_another_version_of_the_data(folder):
    before = folder_version(folder)
    assert folder_version(folder) == before
    (folder / ".hidden").write_text("not looked at")
    assert folder_version(folder) == before
    Image.new("L", (6, 5), 77).save(folder / "cats" / "0.png")
    assert folder_version(folder) != before


def test_one_image_in_colour_makes_all_three_channels(folder):
    Image.new("RGB", (6, 5), (1, 2, 3)).save(folder / "cats" / "0.png")
    both = np.concatenate([read_folder(folder)[part][0] for part in ("train", "test")])
    assert both.shape == (20, 3, 5, 6)
    assert [1, 2, 3] in both[:, :, 0, 0].tolist()
    Image.new("RGBA", (6, 5), (1, 2, 3, 0)).save(folder / "cats" / "1.png")
    assert folder_repairs(folder, 0) == ("19 of 20 images are converted to RGB, from L, RGBA",)


def test_images_of_mixed_sizes_are_refused_with_the_way_out_and_resized_on_request(folder):
    for name in ("0.png", "1.png", "2.png", "5.png"):
        Image.new("L", (9, 9), 1).save(folder / "dogs" / name)
    with pytest.raises(DataError, match=r"6 x 5 pixels and .* 9 x 9; resize all, as with --set image_size=32"):
        read_folder(folder)
    assert images.repairs(str(folder), 9) == ("16 of 20 images are resized to 9 x 9 pixels",)
    found, labels = read_folder(folder, image_size=8)["train"]
    assert found.shape == (len(labels), 1, 8, 8)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "cats" / "0.png").write_text("no image"), "0.png cannot be read as an image"),
        (
            lambda f: Image.new("I;16", (6, 5), 999).save(f / "cats" / "0.png"),
            "0.png has pixels of mode I;16, which 8 bits cannot hold; save it with 8 bits a colour",
        ),
        (lambda f: (f / "birds").mkdir(), "birds has no image for the train part"),
        (lambda f: (f / "cats").rename(f / ".cats"), "has 1 subfolders; at least two are needed"),
        (lambda f: (f / "test").mkdir(), "needs both train and test, or neither"),
    ],
    ids=["no image", "16 bits", "empty class", "one class", "one part"],
)
def test_a_folder_that_cannot_serve_says_why(folder, spoil, message):
    spoil(folder)
    with pytest.raises(DataError, match=message):
        read_folder(folder)


def test_more_than_fits_into_memory_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(DataError, match=r"images need 0.0 GB as numbers, 0.0 GB are allowed"):
        read_folder(folder)


def test_resizing_is_for_folders_only():
    with pytest.raises(DataError, match="image_size is for folders of images; those of mnist have one size"):
        images.load("mnist", "train", 32)
