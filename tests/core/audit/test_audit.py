"""Audits of data sets with something planted in them."""

import tracemalloc

import numpy as np
import pytest

from tests.core.audit.pictures import (
    audited,
    brighter,
    changed,
    found,
    pictures,
    scaled_back,
    shifted,
)
from tests.core.preparation.raw_data import prepared
from torchyard.core.audit.audit import audit
from torchyard.core.audit.distribution import class_shares
from torchyard.core.audit.findings import AUDIT_FILE, Audit
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.data.raw import ArraySplit, RawData

ALTERNATING = np.arange(400) % 2


def test_planted_near_duplicates_are_found_and_nothing_else_is(tmp_path):
    train, test = pictures(400), pictures(100, seed=1)
    for number in range(80):
        test[number] = changed(train[3 * number], number)
    result, _ = audited((train, ALTERNATING), (test, ALTERNATING[:100]), tmp_path)
    pairs = found(result, "near duplicate")
    planted = {("train", 3 * number, "test", number) for number in range(80)}
    assert len(pairs & planted) >= 72
    assert pairs <= planted
    assert set(result.leaked["test"]) == {number for *_, number in pairs}
    assert set(result.leaked["train"]) == {first for _, first, *_ in pairs}
    mirrored = {each.other_index for each in result.findings if each.note == "mirrored"}
    assert mirrored == set(range(3, 80, 4))


def test_exact_duplicates_are_found_within_and_between_splits(tmp_path):
    train, test = pictures(40), pictures(10, seed=1)
    train[7] = train[3]
    test[2] = test[5] = train[11]
    labels = np.zeros(40, np.int64)
    labels[:20] = 1
    result, _ = audited((train, labels), (test, labels[:10]), tmp_path)
    assert found(result, "exact duplicate") == {
        ("train", 3, "train", 7),
        ("train", 11, "test", 2),
        ("train", 11, "test", 5),
    }
    assert result.leaked == {"train": [11], "test": [2, 5]}
    assert found(result, "near duplicate") == set()
    summary = "3 exact duplicate, 2 of 10 test samples leaked"
    assert result.summary({"train": 40, "test": 10}) == summary


def test_the_same_image_under_two_labels_is_a_conflict_and_folders_that_share_many_are_alike(
    tmp_path,
):
    train, test = pictures(40), pictures(10, seed=1)
    train[20:25] = train[:5]
    train[25] = shifted(train[5], 1, 1)
    labels = np.repeat([0, 1], 20)
    result, _ = audited((train, labels), (test, labels[15:25]), tmp_path)
    expected = {("train", number, "train", 20 + number) for number in range(6)}
    assert found(result, "label conflict") == expected
    [alike] = [each for each in result.findings if each.kind == "classes alike"]
    assert (alike.label, alike.other, alike.note) == ("cat", "dog", "6 pairs of images in both")


def test_images_with_nothing_on_them_are_found(tmp_path):
    train, test = pictures(20), pictures(6, seed=1)
    train[4], train[5] = 17, 200
    train[6] = np.random.default_rng(0).integers(100, 102, train[6].shape)
    train[7] = 10 + 2 * (np.arange(32) % 2)  # a deviation of 1: the least that is something
    result, _ = audited((train, ALTERNATING[:20]), (test, ALTERNATING[:6]), tmp_path)
    assert found(result, "no content") == {("train", index, "", -1) for index in (4, 5, 6)}
    assert found(result, "near duplicate") == set()


def test_images_that_all_have_nothing_on_them_can_be_audited(tmp_path):
    blank = np.arange(4, dtype=np.uint8).repeat(3 * 8 * 8).reshape(4, 3, 8, 8)
    labels = ALTERNATING[:2]
    result, _ = audited((blank[:2], labels), (blank[2:], labels), tmp_path)
    assert result.counts == {"no content": 4}
    assert result.facts["near_duplicates"] == "compared"


def test_a_class_that_is_rare_in_one_split_is_found(tmp_path):
    train = pictures(400), np.repeat([0, 1], 200)
    test = pictures(100, seed=1), np.repeat([0, 1], [95, 5])
    result, _ = audited(train, test, tmp_path)
    shares = [each for each in result.findings if each.kind == "class shares"]
    assert {(each.label, each.note) for each in shares} == {
        ("dog", "50.00% of train, 5.00% of test"),
        ("cat", "50.00% of train, 95.00% of test"),
    }
    by_chance = pictures(10, seed=1), np.repeat([0, 1], [8, 2])
    result, _ = audited(train, by_chance, tmp_path / "few")
    assert "class shares" not in result.counts


def test_shares_that_differ_by_less_than_half_are_no_finding_however_sure_that_is():
    def split(*counts):
        return Split(np.zeros((sum(counts), 1), np.uint8), np.repeat(range(3), counts))

    classes = ("cat", "dog", "absent")
    parts = {"train": split(4000, 6000, 0), "test": split(5000, 5000, 0)}
    assert list(class_shares(parts, classes)) == []
    parts["test"] = split(7000, 3000, 0)
    assert [each.label for each in class_shares(parts, classes)] == ["cat", "dog"]


def test_vectors_are_compared_by_their_values_alone(tmp_path):
    train = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    test = train[:4] + np.float32(0.001)
    test[1] = train[9]
    test[2] = 3
    train[20], test[3] = 0.0, -0.0
    result, _ = audited((train, ALTERNATING[:30]), (test, ALTERNATING[:4]), tmp_path)
    assert found(result, "exact duplicate") == {("train", 9, "test", 1), ("train", 20, "test", 3)}
    assert found(result, "no content") == {
        ("test", 2, "", -1),
        ("train", 20, "", -1),
        ("test", 3, "", -1),
    }
    assert "not looked for" in result.facts["near_duplicates"]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (4, 50, 20), (3, 1, 1), (6, 9, 9)])
def test_a_single_image_can_be_audited(shape, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (1, *shape), dtype=np.uint8)
    result, _ = audited((image, ALTERNATING[:1]), (other, ALTERNATING[:1]), tmp_path, ("cat",))
    assert found(result, "near duplicate") == set()
    assert result.leaked == {"train": [], "test": []}
    one = image, ALTERNATING[:1]
    result, _ = audited(one, one, tmp_path / "same", ("cat",))
    assert result.leaked == {"train": [0], "test": [0]}


def test_a_crop_that_was_scaled_back_is_found_from_either_side(tmp_path):
    train, test = pictures(200), pictures(60, seed=1)
    for number in range(30):
        test[number] = scaled_back(train[3 * number], number)
        train[3 * number + 1] = scaled_back(test[30 + number], number)
    result, _ = audited((train, ALTERNATING[:200]), (test, ALTERNATING[:60]), tmp_path)
    crops = {("train", 3 * number, "test", number) for number in range(30)}
    wholes = {("train", 3 * number + 1, "test", 30 + number) for number in range(30)}
    pairs = found(result, "near duplicate")
    assert pairs <= crops | wholes
    assert len(pairs & crops) >= 24
    assert len(pairs & wholes) >= 24


def test_common_kinds_of_picture_are_no_duplicates_but_the_same_one_brighter_is(tmp_path):
    """Rings of many sizes resemble one another more than any photographs do."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:28, :28] - 13.5

    def ring():
        radius, thick, dy, dx = generator.uniform((7, 1.5, -1, -1), (10, 2.5, 1, 1))
        ink = np.exp(-(((np.hypot(y - dy, x - dx) - radius) / thick) ** 2))
        return (200 * ink + generator.normal(0, 4, ink.shape) + 20).clip(0, 255)

    train = np.stack([ring() for _ in range(300)])[:, None].astype(np.uint8)
    test = np.stack([ring() for _ in range(60)])[:, None].astype(np.uint8)
    test[5] = brighter(train[8], 1.1)
    result, _ = audited((train, ALTERNATING[:300]), (test, ALTERNATING[:60]), tmp_path)
    pairs = found(result, "near duplicate")
    assert ("train", 8, "test", 5) in pairs
    assert len(pairs) <= 4


def test_groups_in_two_splits_are_refused_by_preparation_and_found_in_older_data(tmp_path):
    train, test = pictures(20), pictures(6, seed=1)
    groups = {"train": np.arange(20) % 5, "test": 10 + np.arange(6) % 3}
    result, data = audited(
        (train, ALTERNATING[:20]), (test, ALTERNATING[:6]), tmp_path, groups=groups
    )
    assert found(result, "groups") == set()
    kept = np.load(data.folder / "train_groups.npy")
    np.save(data.folder / "test_groups.npy", np.full(6, kept[0]))
    [finding] = [
        each
        for each in audit(PreparedDataset.open(data.folder), lambda *step: None, True).findings
        if each.kind == "groups"
    ]
    assert finding.note == f"group {kept[0]}: 4 samples in train, 6 in test"


def test_an_audit_is_kept_beside_the_arrays_and_one_that_is_damaged_is_made_again(tmp_path):
    train, test = pictures(30), pictures(6, seed=1)
    test[1] = train[3]
    result, data = audited((train, ALTERNATING[:30]), (test, ALTERNATING[:6]), tmp_path)
    assert Audit.read(data.folder / AUDIT_FILE) == result
    steps = []
    assert audit(data, lambda *step: steps.append(step)) == result
    assert steps == []
    (data.folder / AUDIT_FILE).write_bytes(b"PAR1")
    again = audit(data, lambda *step: steps.append(step))
    assert again.findings == result.findings
    assert steps[0][0] == "reading"
    assert PreparedDataset.open(data.folder).damaged() == []


@pytest.mark.slow
def test_memory_grows_by_some_hundred_bytes_for_each_image(tmp_path):
    """Of four times as many images, which the files beside the arrays hold, not the memory."""
    peaks, images = [], np.random.default_rng(0).integers(0, 256, (65536, 1, 8, 8), np.uint8)
    for count in (16384, 65536):  # the blocks of both are full
        train, test = images[:count], images[:1]
        splits = ArraySplit(train, np.zeros(count, np.int64)), ArraySplit(test, ALTERNATING[:1])
        data = prepared(RawData(("cat",), *splits, "here"), tmp_path / str(count))
        tracemalloc.start()
        audit(data, lambda *step: None, again=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = (peaks[1] - peaks[0]) / (65536 - 16384)
    assert grown < 700
