"""Prepared data that machines share in a bucket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.core.data.remote.web_server import web_server
from tests.core.preparation.raw_data import dataset, images, quiet, raw
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.raw import ArraySplit
from torchyard.core.errors import UserError
from torchyard.core.preparation.prepare import prepare_dataset

LABELS = np.arange(300) % 2


@pytest.fixture
def params():
    made = ArraySplit(images(300, 3, 40, 40), LABELS)
    test = ArraySplit(images(6, 3, 40, 40), LABELS[:6])
    return dataset(lambda _: raw(made, test))


def prepare(params, folder: Path, **settings: Any) -> PreparedDataset:
    return prepare_dataset("given", params(**settings), folder, quiet)


def same(one: PreparedDataset, other: PreparedDataset) -> bool:
    names = sorted(path.name for path in one.folder.iterdir())
    return (
        one.digest == other.digest
        and one.folder.name == other.folder.name
        and names == sorted(path.name for path in other.folder.iterdir())
        and all((one.folder / n).read_bytes() == (other.folder / n).read_bytes() for n in names)
    )


def test_another_machine_fetches_what_one_has_prepared(bucket, params, tmp_path):
    first = prepare(params, tmp_path / "a")
    assert len(params.builds) == 1
    there = bucket.names()
    second = prepare(params, tmp_path / "b")
    assert len(params.builds) == 1
    assert same(first, second)
    assert bucket.names() == there
    assert [*(tmp_path / "b/downloads").iterdir()] == []
    bucket.clear()  # from its own folder from now on
    assert prepare(params, tmp_path / "b") == second
    assert (len(params.builds), bucket.names()) == (1, [])
    prepare(params, tmp_path / "b", tag=1)  # something else
    assert len(params.builds) == 2


def test_what_was_prepared_before_is_shared_later(bucket, params, monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHYARD_SHARED")
    prepare(params, tmp_path / "a")
    assert bucket.names() == []
    monkeypatch.setenv("TORCHYARD_SHARED", "s3://data/team/")
    prepare(params, tmp_path / "a")
    prepare(params, tmp_path / "b")
    assert len(params.builds) == 1


@pytest.mark.slow
def test_the_entry_comes_last_so_that_nothing_unfinished_is_believed(
    bucket, params, caplog, tmp_path
):
    bucket.break_connections(after=100_000, cuts=10**6)  # no array gets there
    prepare(params, tmp_path / "a")
    assert "The prepared data of 'given' are not shared: " in caplog.text
    assert not [name for name in bucket.names() if name.endswith(".json")]
    bucket.break_connections(after=100_000, cuts=1)  # this one, and then all of it
    prepare(params, tmp_path / "a")
    assert bucket.seen == 1
    prepare(params, tmp_path / "b")
    assert len(params.builds) == 1


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [2, 10**6])
def test_a_connection_that_breaks_while_it_is_fetched(bucket, params, caplog, tmp_path, cuts):
    first = prepare(params, tmp_path / "a")
    bucket.break_connections(after=200_000, cuts=cuts)
    second = prepare(params, tmp_path / "b")
    bucket.break_connections(after=0, cuts=0)
    assert same(first, second)
    if cuts == 2:  # it goes on
        assert len(params.builds) == 1
    else:  # it is given up, and prepared here
        assert len(params.builds) == 2
        assert "'given' is prepared here." in caplog.text


SPOILED = {
    "changed": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "gone": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_damaged_file_is_not_used_and_put_right(bucket, params, caplog, tmp_path, spoil):
    first = prepare(params, tmp_path / "a")
    for name in bucket.names("team/prepared/files/"):
        if len(content := bucket.read(name)) > 100_000:
            if spoil:
                bucket.put(name, spoil(content))
            else:
                bucket.client.delete_object(Bucket="data", Key=name)
    second = prepare(params, tmp_path / "b")
    assert same(first, second)
    assert len(params.builds) == 2
    assert "'given'" in caplog.text
    prepare(params, tmp_path / "c")
    assert len(params.builds) == 2


@pytest.mark.slow
def test_an_entry_that_leads_out_of_the_folder_is_not_followed(bucket, params, caplog, tmp_path):
    prepare(params, tmp_path / "a")
    [name] = [name for name in bucket.names() if name.endswith(".json")]
    entry = json.loads(bucket.read(name))
    whole = entry["files"]["manifest.json"]
    for spoiled in (
        b"no JSON",
        json.dumps(entry | {"files": {"../../evil": whole}}).encode(),
        json.dumps(entry | {"folder": "../evil"}).encode(),
    ):
        bucket.put(name, spoiled)
        caplog.clear()
        prepare(params, tmp_path / str(len(params.builds)))
        assert "cannot be used: " in caplog.text
    assert len(params.builds) == 4
    assert not [*tmp_path.glob("**/evil")]


def test_from_a_web_server_it_is_fetched_and_nothing_is_put_there(
    bucket, params, monkeypatch, tmp_path
):
    prepare(params, tmp_path / "a")
    with web_server() as web:
        for name in bucket.names("team/prepared/"):
            web.files[f"/{name}"] = bucket.read(name)
        monkeypatch.setenv("TORCHYARD_SHARED", web.address("/team"))
        prepare(params, tmp_path / "b")
        assert len(params.builds) == 1
        before = dict(web.files)
        prepare(params, tmp_path / "b", tag=1)
        assert (len(params.builds), web.files) == (2, before)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "/mnt/team",
            "is an address such as s3://team/torchyard, not '/mnt/team'",
        ),
        (
            "s4://team",
            "no data are read from an address that begins with 's4://'",
        ),
        ("s3://", "'s3://' names nothing"),
    ],
)
def test_what_is_no_address_is_refused(params, monkeypatch, tmp_path, text, told):
    monkeypatch.setenv("TORCHYARD_SHARED", text)
    with pytest.raises(UserError, match=f"TORCHYARD_SHARED:? {told}"):
        prepare(params, tmp_path)
