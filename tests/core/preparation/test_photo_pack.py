"""Image files that are packed as they are: when, which, and what is said of it."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.core.preparation.raw_data import (
    OPEN,
    encoded,
    image_split,
    images,
    photo,
    prepared,
    problems,
    raw,
    saved,
)
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.raw import ArraySplit

LARGE = (3, 80, 80)


def smooth(height, width):
    ramp = np.add.outer(np.arange(height), np.arange(width)) % 256
    return Image.fromarray(np.stack([ramp, ramp // 2, 255 - ramp], axis=2).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "images"


def storage(cache, files, shape=LARGE, **options):
    split = image_split(files, shape, resize=options.pop("resize_images", True))
    found = prepared(raw(split, split), cache, **options)
    said = [note for note in found.notes if "dataset.storage=encoded" in note]
    assert bool(said) == found.encoded
    return (found.storage, said[0].rpartition(": ")[2]) if said else (found.storage, "")


def test_what_is_kept_is_chosen_by_size(tmp_path, folder):
    several = saved(folder, smooth(90, 120), smooth(120, 90), format="JPEG")
    equal = saved(folder / "equal", smooth(80, 80), smooth(80, 80), format="JPEG")
    noise = saved(folder / "noise", photo(80, 80), photo(80, 80))
    assert storage(tmp_path / "1", several) == ("encoded", "they have several sizes")
    assert storage(tmp_path / "2", equal) == ("encoded", "arrays would be larger")
    assert storage(tmp_path / "3", equal, OPEN) == ("encoded", "arrays would be larger")
    assert storage(tmp_path / "4", noise) == ("arrays", "")  # the files would be
    assert storage(tmp_path / "5", several, (3, 64, 64)) == ("arrays", "")
    assert storage(tmp_path / "6", several, storage="arrays") == ("arrays", "")
    assert storage(tmp_path / "7", noise, storage="encoded")[0] == "encoded"
    assert storage(tmp_path / "8", several, (3, 64, 64), storage="encoded")[0] == "encoded"


def test_several_sizes_without_a_size_to_scale_to_are_refused(tmp_path, folder):
    files = saved(folder, smooth(90, 120), smooth(120, 90), smooth(90, 120), format="JPEG")
    split = image_split(files, OPEN, resize=False, size_advice="set dataset.image_size")
    for chosen in ("auto", "encoded"):
        found = problems(raw(split, split), tmp_path / chosen, storage=chosen)
        assert found == [
            f"{files[1]}: of another size: 120x90, not 90x120",
            f"{files[1]}: of another size: 120x90, not 90x120",
            "set dataset.image_size",
        ]


def test_the_manifest_says_how_they_are_read(tmp_path, folder):
    files = saved(folder, smooth(90, 120), smooth(70, 120), format="JPEG")
    split = image_split(files, LARGE)
    found = prepared(raw(split, split), tmp_path, crop_ratio=0.9)
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert manifest["storage"] == "encoded"
    assert manifest["reading"] == {"resize": "crop", "crop_ratio": 0.9}
    assert sorted(manifest["sizes"]) == sorted(
        f"{part}_{name}"
        for part in ("train", "test")
        for name in ("images.bin", "index.npy", "labels.npy")
    )
    assert (found.folder / "train_images.bin").read_bytes() == b"".join(
        file.read_bytes() for file in files
    )
    kept, enlarged = found.notes
    assert kept == (
        "image files are kept, and decoded to 80x80 when they are needed (dataset.storage=encoded, "
        "dataset.resize=crop, dataset.crop_ratio=0.9): they have several sizes"
    )
    assert enlarged == "2 of 4 images are smaller than 80x80 and are scaled up"
    assert PreparedDataset.open(found.folder).reading.resize == "crop"
    assert found.damaged() == []


def test_broken_files_are_refused_or_left_out(tmp_path, folder):
    files = saved(folder, *[smooth(90, 100 + 5 * number) for number in range(6)], format="JPEG")
    whole = files[2].read_bytes()
    files[2].write_bytes(whole[: len(whole) // 2])
    files[4].write_bytes(b"")
    good = saved(folder / "good", smooth(80, 80), smooth(90, 80), format="JPEG")
    content = raw(image_split(files, LARGE), image_split(good, LARGE))
    found = problems(content, tmp_path / "a")
    assert found[0].startswith(f"{files[2]}: ")
    assert "truncated" in found[0].lower()
    assert found[1] == f"{files[4]}: the file is empty"
    assert found[2] == "set dataset.broken=skip to leave out images that cannot be read"
    kept = prepared(content, tmp_path / "a", broken="skip")
    assert kept.counts == {"train": 4, "test": 2}
    assert kept.train.labels.tolist() == [0, 1, 1, 1]
    left = [files[number] for number in (0, 1, 3, 5)]
    samples = kept.train.samples
    assert [samples.encoded(i) for i in range(4)] == [file.read_bytes() for file in left]
    np.testing.assert_allclose(kept.mean, samples[:].mean(axis=(0, 2, 3)) / 255)
    assert any("2 of 8 images cannot be read and are left out" in note for note in kept.notes)


def test_where_all_are_broken_nothing_is_left_out(tmp_path, folder):
    files = saved(folder, smooth(90, 100), smooth(90, 110), format="JPEG")
    for file in files:
        file.write_bytes(b"no image")
    found = problems(raw(image_split(files, LARGE), image_split(files, LARGE)), tmp_path,
                     broken="skip")  # fmt: skip
    assert len([line for line in found if "not an image" in line]) == 4


def test_colour_and_depth_are_those_of_the_whole_set(tmp_path, folder):
    deep = Image.fromarray(np.linspace(1000, 1255, 8100).reshape(90, 90).astype(np.uint16))
    greys = [smooth(90, 100).convert("L"), smooth(100, 90).convert("L")]
    files = saved(folder, *greys, deep, format="PNG")
    split = image_split(files, (None, 80, 80))
    grey = prepared(raw(split, split), tmp_path / "grey")
    assert grey.shape == (1, 80, 80)
    assert grey.reading.value_range == (1000, 1255)
    assert [int(grey.train.samples[2].min()), int(grey.train.samples[2].max())] == [0, 255]
    files.append(saved(folder / "colour", smooth(90, 100))[0])
    split = image_split(files, (None, 80, 80))
    coloured = prepared(raw(split, split), tmp_path / "colour")
    assert coloured.shape == (3, 80, 80)
    assert coloured.encoded
    assert len(coloured.mean) == 3


def test_a_transparent_photo_is_laid_over_the_background(tmp_path, folder):
    clear = Image.new("RGBA", (90, 100))
    files = saved(folder, clear, smooth(90, 80).convert("RGBA"))
    split = image_split(files, LARGE)
    found = prepared(raw(split, split), tmp_path, storage="encoded", background="#00ff00")
    assert found.train.samples[0][:, 40, 40].tolist() == [0, 255, 0]


def test_only_image_files_can_be_kept(tmp_path):
    arrays = ArraySplit(images(4, *LARGE), np.array([0, 1, 0, 1]))
    found = problems(raw(arrays, arrays), tmp_path, storage="encoded")
    assert found == ["storage=encoded: it does not consist of image files alone"]
    assert not prepared(raw(arrays, arrays), tmp_path).encoded


def test_a_file_that_changes_while_it_is_packed_is_broken(tmp_path):
    reads = []

    def read(number):
        reads.append(number)
        return encoded(smooth(90, 100 + number + reads.count(number)), "JPEG")

    split = image_split([0, 1], LARGE, read=read)
    found = problems(raw(split, split), tmp_path, storage="encoded")
    assert "the file was changed while it was read" in found[0]
