"""All images of a set: the form they have in common, what is converted, what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.core.preparation.raw_data import (
    OPEN,
    encoded,
    image_files,
    image_split,
    photo,
    prepared,
    problems,
    raw,
    saved,
)


def grey(height: int = 12, width: int = 9) -> Image.Image:
    return photo(height, width).convert("L")


def tone(level: int) -> Image.Image:
    return Image.new("L", (9, 12), level)


def of(*pictures: Image.Image, folder: Path, format: str = "PNG", **options: Any) -> Any:
    files = saved(folder, *pictures, format=format)
    return image_split(files, **{"shape": OPEN, **options})


@pytest.mark.parametrize("place", [0, 1, 19, 37])
def test_any_colour_makes_the_set_colour_wherever_it_is(tmp_path: Path, place: int) -> None:
    pictures = [grey() for _ in range(38)]
    pictures[place] = photo()
    train, test = of(*pictures, folder=tmp_path / "a"), of(grey(), grey(), folder=tmp_path / "b")
    found = prepared(raw(train, test), tmp_path)
    assert found.shape == (3, 12, 9)
    assert "39 of 40 images are grey and become RGB, because others have colour" in found.notes
    expected = [np.moveaxis(np.asarray(p.convert("RGB")), 2, 0) for p in pictures]
    np.testing.assert_array_equal(found.train.samples, expected)
    turned = prepared(raw(test, train), tmp_path / "2")
    assert turned.shape == (3, 12, 9)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "LA"])
def test_a_set_without_colour_is_grey_however_it_is_saved(tmp_path: Path, mode: str) -> None:
    pictures = [grey().convert("1").convert("L") for _ in range(4)]
    split = of(*(p.convert(mode) for p in pictures), folder=tmp_path / "a")
    found = prepared(raw(split, split), tmp_path)
    np.testing.assert_array_equal(found.train.samples[:, 0], [np.asarray(p) for p in pictures])
    note = "8 of 8 images are saved in colour and have none: the set is grey"
    assert (note in found.notes) == (mode in ("RGB", "P"))


def test_channels_that_are_given_are_kept_and_said(tmp_path: Path) -> None:
    split = of(photo(), grey(), folder=tmp_path / "a", shape=(1, 12, 9))
    found = prepared(raw(split, split), tmp_path)
    assert found.shape == (1, 12, 9)
    assert found.notes == ("2 of 4 images have colour and become grey",)


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_further_frames_are_not_used_and_that_is_said(tmp_path: Path, format: str) -> None:
    files = saved(tmp_path / "a", photo(), photo(), format=format)
    photo().save(files[0], format, save_all=True, append_images=[photo(), photo()])
    found = prepared(raw(image_split(files, OPEN), image_split(files[1:], OPEN)), tmp_path)
    assert "1 of 3 images have further frames or pages, which are not used" in found.notes


def test_the_size_is_the_one_that_most_have(tmp_path: Path) -> None:
    odd, *others = saved(tmp_path / "a", photo(20, 10), *(photo() for _ in range(40)))
    split = image_split([odd, *others], OPEN, resize=False, size_advice="set the size")
    assert problems(raw(split, image_split(others, OPEN)), tmp_path) == [
        f"{odd}: of another size: 20x10, not 12x9",
        "set the size",
    ]


def test_a_broken_first_image_hides_no_other(tmp_path: Path) -> None:
    files = image_files(tmp_path / "a", 40)
    files[0].write_bytes(b"no image")
    files[39].write_bytes(files[1].read_bytes()[:60])
    found = problems(raw(image_split(files, OPEN), image_split(files[1:3], OPEN)), tmp_path)
    assert found[0] == f"{files[0]}: not an image, or of a format that is not supported"
    assert found[1].startswith(f"{files[39]}: ")
    assert found[2:] == ["set dataset.broken=skip to leave out images that cannot be read"]
    for file in files:
        file.write_bytes(b"")
    found = problems(raw(image_split(files, OPEN), image_split(files, OPEN)), tmp_path)
    assert [line for line in found if "the file is empty" not in line] == [
        "… and 70 more of 80 images cannot be used",
        f"all of them are named in {next(tmp_path.rglob('*.broken.txt'))}",
        "set dataset.broken=skip to leave out images that cannot be read",
    ]


def test_broken_images_are_left_out_and_recorded(tmp_path: Path) -> None:
    files = image_files(tmp_path / "a", 40)
    train, test = image_split(files[:30]), image_split(files[30:])
    whole = prepared(raw(train, test), tmp_path)
    broken = [0, 3, 4, *range(6, 15), 35]
    for number in broken:
        files[number].write_bytes(b"no image")
    found = prepared(raw(train, test), tmp_path, broken="skip")
    assert found.counts == {"train": 18, "test": 9}
    kept = np.setdiff1d(np.arange(30), broken)
    np.testing.assert_array_equal(found.train.samples, whole.train.samples[kept])
    np.testing.assert_array_equal(found.train.labels, whole.train.labels[kept])
    np.testing.assert_array_equal(found.test.labels, np.delete(whole.test.labels, 5))
    scaled = found.train.samples / 255
    np.testing.assert_allclose(found.mean, scaled.mean((0, 2, 3)))
    (note,) = found.notes
    assert note.startswith("13 of 40 images cannot be read and are left out (dataset.broken=skip)")
    assert f"{files[3]}: not an image" in note
    named = (found.folder / "left_out.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in named] == [str(files[n]) for n in broken]


def test_a_class_or_a_part_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    files = image_files(tmp_path / "a", 6)
    sound = image_split(files[4:])
    for file in files[:4:2]:
        file.write_bytes(b"")
    found = problems(raw(image_split(files[:4]), sound), tmp_path, broken="skip")
    assert found == ["no image of the class 'cat' can be read"]
    lost = image_split([files[0], files[2]])
    found = problems(raw(sound, lost), tmp_path, broken="skip")
    assert found == [f"{files[n]}: the file is empty" for n in (0, 2)]
    other = image_split([*files[4:], *saved(tmp_path / "b", photo(5, 5))], resize=False)
    (problem,) = problems(raw(sound, other), tmp_path, broken="skip")
    assert "of another size: 5x5, not 12x9" in problem


def test_deep_images_are_scaled_by_what_the_whole_set_uses(tmp_path: Path) -> None:
    values = np.arange(4 * 108, dtype=np.uint16).reshape(4, 12, 9) + 2000
    pictures = [Image.fromarray(each) for each in values]
    train, test = (of(*pictures[i:][:2], folder=tmp_path / str(i)) for i in (0, 2))
    found = prepared(raw(train, test), tmp_path)
    expected = (values - 2000.0) * 256 / 432
    np.testing.assert_array_equal(found.train.samples[:, 0], expected[:2].astype(np.uint8))
    np.testing.assert_array_equal(found.test.samples[:, 0], expected[2:].astype(np.uint8))
    assert found.notes == (
        "4 of 4 images have more than 8 bits: their values from 2000 to 2431 become 0 to 255 "
        "(dataset.value_range)",
    )
    assert found.reading.value_range == (2000, 2431)
    chosen = prepared(raw(train, test), tmp_path, value_range=(2000, 2255))
    assert chosen.train.samples[0, 0, 0, 1] == 1
    assert chosen.test.samples.max() == 255


def test_a_range_of_few_pixels_is_warned_of(tmp_path: Path) -> None:
    values = np.full((4, 12, 9), 1000, np.uint16)
    values[:, :6] += 20
    values[0, 0, 0], values[1, 0, 0] = 0, 65535  # a dead pixel and a hot one
    split = of(*map(Image.fromarray, values), folder=tmp_path / "a")
    notes = prepared(raw(split, split), tmp_path).notes
    assert notes[-1].endswith("set dataset.value_range=[1000,1020]")
    assert len(prepared(raw(split, split), tmp_path, value_range=(990, 1030)).notes) == 1


def test_channels_without_differences_are_warned_of(tmp_path: Path) -> None:
    split = of(*[tone(7)] * 3, folder=tmp_path / "a")
    (note,) = prepared(raw(split, split), tmp_path).notes
    assert note == "warning: every pixel of the channel 'grey' is 7 in all training images"
    red = of(*(Image.new("RGB", (9, 12), (n, 0, 0)) for n in range(3)), folder=tmp_path / "b")
    notes = prepared(raw(red, red), tmp_path / "2").notes
    assert [note.split("'")[1] for note in notes] == ["green", "blue"]


def test_transparent_images_are_laid_over_the_colour_that_is_set(tmp_path: Path) -> None:
    drawing = Image.new("RGBA", (9, 12))
    drawing.paste((0, 0, 0, 255), (0, 0, 4, 12))
    split = of(*[drawing] * 2, folder=tmp_path / "a")
    found = prepared(raw(split, split), tmp_path)
    assert found.train.samples[0, 0, 0].tolist() == [0] * 4 + [255] * 5
    assert found.notes == (
        "4 of 4 images are saved in colour and have none: the set is grey",
        "4 of 4 images are transparent and are laid over [255, 255, 255] (dataset.background)",
    )
    red = prepared(raw(split, split), tmp_path, background="red")
    assert red.train.samples[0, :, 0, 8].tolist() == [255, 0, 0]
    assert red.reading.background == (255, 0, 0)


def test_many_images_in_another_pass_are_the_same_in_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchyard.core.preparation.decoding.MIN_PARALLEL_SECONDS", 0.0)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    pictures = [Image.fromarray(np.full((4, 4), n, np.uint16)) for n in range(300)]
    files = saved(tmp_path / "a", *pictures)
    files[77].write_bytes(b"no image")
    files[211].write_bytes(encoded(Image.new("RGB", (4, 4), "red")))
    split = image_split(files, OPEN)
    found = prepared(raw(split, image_split(files[:2], OPEN)), tmp_path, broken="skip")
    expected = np.delete(np.arange(300) * 256 // 300, 77)
    expected[210] = 255
    np.testing.assert_array_equal(found.train.samples[:, 0, 0, 0], expected)
    assert found.train.samples[210, 2].max() == 0
