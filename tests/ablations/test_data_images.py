"""Claims on the images: they are MNIST as published, and their validation part is drawn by seed only."""

import hashlib
import struct

import numpy as np
import pytest
import torch

from ablations.data import images
from ablations.data.build_mnist import MD5, parse_idx, write_archive


@pytest.fixture(scope="module")
def arrays():
    with np.load(images.ARCHIVE) as archive:
        return dict(archive)


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize(
    ("name", "published"), [("test_images", "t10k-images-idx3-ubyte"), ("test_labels", "t10k-labels-idx1-ubyte")]
)
def test_the_test_part_has_the_published_checksum(arrays, name, published):
    assert hashlib.md5(idx(arrays[name])).hexdigest() == MD5[published]


def test_labels_are_those_published(arrays):
    assert arrays["train_labels"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(arrays["test_labels"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert len(arrays["train_labels"]) == 10_000


def test_idx_files_are_parsed_to_the_array_they_hold():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(parse_idx(idx(array)), array)


def test_the_archive_is_the_same_bytes_whenever_it_is_written(arrays, tmp_path, monkeypatch):
    small = {name: array[:100] for name, array in arrays.items()}
    write_archive(tmp_path / "one.npz", small)
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_archive(tmp_path / "two.npz", small)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as written:
        np.testing.assert_array_equal(written["test_images"], small["test_images"])


def test_images_are_floats_from_zero_to_one():
    test = images.mnist("test")
    assert test.images.shape == (10_000, 1, 28, 28)
    assert test.images.dtype == torch.float32
    assert (test.images.min(), test.images.max()) == (0, 1)
    assert test.labels.dtype == torch.int64


def numbered(count=100):
    return images.Images(torch.arange(count)[:, None, None, None].float(), torch.arange(count))


def test_training_and_validation_parts_are_disjoint():
    train, validation = images.split(numbered(), validation=30, train=70, seed=1)
    assert sorted(torch.cat([train.labels, validation.labels]).tolist()) == list(range(100))
    assert torch.equal(train.images.flatten().long(), train.labels)


def test_the_validation_part_depends_on_the_seed_and_not_on_the_training_size():
    validations = [images.split(numbered(), 30, train, seed)[1].labels for train, seed in ((70, 1), (10, 1), (70, 2))]
    assert torch.equal(validations[0], validations[1])
    assert not torch.equal(validations[0], validations[2])


def test_asking_for_too_many_images_says_how_many_there_are():
    with pytest.raises(ValueError, match="80 training \\+ 30 validation images were asked of 100"):
        images.split(numbered(), validation=30, train=80, seed=0)
