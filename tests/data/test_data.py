"""Data sets: what is read, how it is split, and what a user is told when it is not there."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from penjing.data import digits, image_folder, in_memory_loader, mnist
from penjing.data.augment import random_affine, random_crop_and_flip
from penjing.data.mnist import FILES, read_idx
from penjing.errors import DataError, SettingError


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, n: int = 20, zipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in FILES:
        shape = (n, 28, 28) if "images" in name else (n,)
        content = idx(rng.integers(0, 10, shape, dtype=np.uint8))
        (folder / (name + ".gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize(("place", "zipped"), [("", False), ("MNIST/raw", True)])
def test_mnist_is_found_and_scaled(tmp_path: Path, place: str, zipped: bool) -> None:
    write_mnist(tmp_path / place, zipped=zipped)
    found = mnist(tmp_path, n_valid=5, batch_size=4, augment=False)
    raw = read_idx(next((tmp_path / place).glob(FILES[2] + "*")))
    images, labels = next(iter(found.test))
    torch.testing.assert_close(images[:, 0], (raw / 255 - 0.1307) / 0.3081)
    assert labels.dtype == torch.int64 and images.shape == (20, 1, 28, 28)
    assert sum(len(y) for _, y in found.train) == 12  # the last incomplete batch is left out
    assert sum(len(y) for _, y in found.valid) == 5


def test_mnist_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.*{tmp_path}.*--data"):
        mnist(tmp_path)
    write_mnist(tmp_path)
    with pytest.raises(DataError, match="n_valid must be 1 to 19, got 20"):
        mnist(tmp_path, n_valid=20)
    (tmp_path / FILES[1]).write_bytes(idx(np.zeros(19, np.uint8)))
    with pytest.raises(DataError, match="do not belong together"):
        mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a", b"", "not an IDX file"),
        ("a", b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "unsigned bytes"),
        ("a", idx(np.zeros((2, 3), np.uint8))[:-1], r"should hold 6 values of shape \(2, 3\), it holds 5"),
        ("a", b"\0\0\x08\x03\0\0", "cut off"),
        ("a.gz", b"not gzip", "cannot be read"),
        ("a.gz", gzip.compress(bytes(100), mtime=0)[:-12], "cannot be read"),
        ("a.gz", gzip.compress(bytes(100), mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_idx(tmp_path / name)


def picture(path: Path, value: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (10, 12), value if mode == "L" else (value, 0, 255 - value)).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for part, n in (("train", 6), ("test", 2)):
        for i in range(n):
            picture(tmp_path / part / "cat" / f"{i}.png", 10 * i)
            picture(tmp_path / part / "dog" / f"{i}.jpg", 255 - 10 * i)
    return tmp_path


def test_pictures_in_folders(pictures: Path) -> None:
    found = image_folder(pictures, size=8, n_valid=4, batch_size=4, augment=False)
    assert found.classes == ("cat", "dog")
    images, labels = next(iter(found.test))
    assert images.shape == (4, 3, 8, 8) and labels.tolist() == [0, 0, 1, 1]
    assert sum(len(y) for _, y in found.train) == 8 and sum(len(y) for _, y in found.valid) == 4
    assert image_folder(pictures, size=8, grey=True).train.dataset.images.shape[1:] == (1, 8, 8)


def test_pictures_are_scaled_by_the_training_part(pictures: Path) -> None:
    for part in ("train", "test"):
        (pictures / part).rename(pictures / f"{part}-")
        (pictures / f"{part}-").rename(pictures / part)
    picture(pictures / "valid" / "cat" / "a.png", 0)
    picture(pictures / "valid" / "dog" / "a.png", 255)
    images = image_folder(pictures, size=8, augment=False).train.dataset.images
    assert len(images) == 12  # nothing is held out where there is a folder for it
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images[:, 0].std(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_pictures_are_scaled_as_a_trained_network_wants_them(pictures: Path) -> None:
    picture(pictures / "test" / "cat" / "red.png", 255)
    found = image_folder(pictures, size=8, augment=False, mean=[0.5, 0.25, 0.0], deviation=[0.5, 0.25, 2.0])
    red = torch.tensor([1.0, -1.0, 0.0])
    assert any(torch.equal(image[:, 0, 0], red) for image in found.test.dataset.images)
    with pytest.raises(SettingError, match=r"mean must be 3 numbers, got \[0\.5\]"):
        image_folder(pictures, size=8, mean=[0.5])
    with pytest.raises(SettingError, match="deviation must be 3 numbers, above 0"):
        image_folder(pictures, size=8, deviation=[1.0, 0.0, 1.0])


def test_a_square_of_training_pictures_is_erased(pictures: Path) -> None:
    found = image_folder(pictures, size=8, n_valid=4, batch_size=8, erase=3, mean=[-1.0] * 3, deviation=[1.0] * 3)
    assert all(bool((image == 0).any()) for images, _ in found.train for image in images)  # scaled values begin at 1
    assert not any(bool((images == 0).any()) for part in (found.valid, found.test) for images, _ in part)
    with pytest.raises(SettingError, match="erase must be 0 to 7, less than a picture's side, got 8"):
        image_folder(pictures, size=8, erase=8)
    with pytest.raises(SettingError, match="erase needs augment: true"):
        image_folder(pictures, size=8, erase=2, augment=False)


def test_folders_that_are_laid_out_otherwise(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder train"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no folders"):
        image_folder(tmp_path / "empty")
    picture(pictures / "test" / "bird" / "1.png", 3)
    with pytest.raises(DataError, match="has the class bird"):
        image_folder(pictures)
    (pictures / "train" / "bird").mkdir()
    with pytest.raises(DataError, match="bird holds no pictures"):
        image_folder(pictures)
    (pictures / "train" / "bird" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"1\.png cannot be read as a picture"):
        image_folder(pictures)


def test_digits_are_three_parts_that_share_nothing() -> None:
    found = digits(augment=False)
    parts = [found.train.dataset, found.valid.dataset, found.test.dataset]
    assert [len(part) for part in parts] == [1097, 250, 450]
    train = parts[0].images
    assert float(train.mean()) == pytest.approx(0, abs=1e-5) and float(train.std()) == pytest.approx(1, abs=1e-5)
    again = digits(augment=False)
    assert all(
        torch.equal(a.images, b.dataset.images)
        for a, b in zip(parts, (again.train, again.valid, again.test), strict=True)
    )
    assert sorted(torch.cat([part.labels for part in parts]).bincount().tolist())[0] > 150


def test_a_shuffled_loader_gives_whole_batches_in_another_order() -> None:
    loader = in_memory_loader(torch.arange(10.0).reshape(10, 1, 1, 1), torch.arange(10), 4, shuffle=True)
    torch.manual_seed(0)
    first, second = ([y.tolist() for _, y in loader] for _ in range(2))
    assert first != second and [len(batch) for batch in first] == [4, 4]
    assert all(x.flatten().long().tolist() == y.tolist() for x, y in loader)


def test_augmentation_stays_in_range_and_follows_the_seed() -> None:
    images = torch.rand(8, 1, 9, 9)
    for change in (random_affine(), random_crop_and_flip(padding=2), random_crop_and_flip(padding=2, erase=4)):
        torch.manual_seed(1)
        a = change(images)
        torch.manual_seed(1)
        assert torch.equal(a, change(images)) and not torch.equal(a, change(images))
        assert a.shape == images.shape and a.min() >= 0 and a.max() <= 1
    still = random_affine(degrees=0, scale=0, shear=0, shift=0)(images)
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)


def test_erased_squares_lie_around_points_drawn_evenly() -> None:
    torch.manual_seed(0)
    change, n = random_crop_and_flip(padding=0, erase=3), 20_000
    erased = change(torch.ones(n, 1, 6, 6)) == 0
    areas, share = erased.sum((1, 2, 3)), erased.float().mean((0, 1))
    assert areas.max() == 9 and areas.min() == 4  # around a corner 2 x 2 is left
    reach = torch.tensor([2, 3, 3, 3, 3, 2]) / 6  # a pixel's row is erased where the point is at most a row away
    torch.testing.assert_close(share, torch.outer(reach, reach), atol=0.02, rtol=0)
