"""Published data sets: their parameters, and that they are torchvision's."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from torchyard.plugins.datasets.cifar import CIFAR10, CIFAR100
from torchyard.plugins.datasets.mnist import MNIST, FashionMNIST


def test_parameters_are_checked(tmp_path: Path) -> None:
    for wrong in ({"mirror": "ftp://x"}, {"checksum": "abc"}, {"path": tmp_path / "no"}, {"x": 1}):
        with pytest.raises(ValidationError):
            CIFAR10.model_validate(wrong)


def test_addresses_checksums_and_names_are_torchvisions() -> None:
    from torchvision import datasets

    for ours, theirs in ((CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)):
        assert ours.model_fields["checksum"].default == theirs.tgz_md5
        assert (ours.url, ours.archive) == (theirs.url, theirs.filename)
        assert ours.folders == (theirs.base_folder,)
        listed = [name for name, _ in theirs.train_list + theirs.test_list]
        assert sorted(ours.files) == sorted([*listed, theirs.meta["filename"]])
        assert list(ours.tests) == [name for name, _ in theirs.test_list]
        assert (ours.meta, ours.names_key) == (theirs.meta["filename"], theirs.meta["key"])
    for ours_idx, theirs_idx in ((MNIST, datasets.MNIST), (FashionMNIST, datasets.FashionMNIST)):
        assert list(ours_idx.mirrors) == theirs_idx.mirrors
        files = [f"{name}.gz" for name in ours_idx.files]
        assert list(zip(files, ours_idx.checksums, strict=True)) == theirs_idx.resources
    assert list(FashionMNIST.classes) == datasets.FashionMNIST.classes
