"""Data sets whose files are elsewhere are prepared as if they were here."""

import hashlib
import io
import zipfile

import pandas as pd
import pytest
from PIL import Image

from tests.core.data.remote.web_server import web_server
from torchyard.core.config.resolve import read_config
from torchyard.core.errors import UnreachableError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.preparation.prepare import find_prepared, prepare_dataset
from torchyard.pipelines.commands.arguments import PRESETS


@pytest.fixture
def server():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for number in range(12):
            image = io.BytesIO()
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(image, "png")
            opened.writestr(f"{'cat' if number % 2 else 'dog'}/{number}.png", image.getvalue())
    with web_server() as server:
        server.files["/photos.zip"] = archive.getvalue()
        plants = {"kind": ["rose", "oak"] * 10, "leaves": range(20)}
        server.files["/plants.csv"] = pd.DataFrame(plants).to_csv(index=False).encode()
        yield server


def dataset(*settings):
    resolved = read_config("digits", [f"dataset.{each}" for each in settings], PRESETS, host())
    return resolved.config.dataset.name, resolved.dataset


def prepare(chosen, cache):
    return prepare_dataset(*chosen, cache, lambda *_: None)


@pytest.mark.parametrize(
    ("settings", "file", "classes"),
    [
        (("name=image_folder",), "/photos.zip", ("cat", "dog")),
        (("name=table", "label=kind"), "/plants.csv", ("oak", "rose")),
    ],
)
def test_a_file_elsewhere_is_prepared_and_found_again(server, tmp_path, settings, file, classes):
    address = server.address(file)
    chosen = dataset(*settings, f"path={address}")
    assert find_prepared(*chosen, tmp_path) is None
    found = prepare(chosen, tmp_path)
    assert found.classes == classes
    digest = hashlib.sha256(server.files[file]).hexdigest()
    assert found.source == f"{address}#sha256={digest}"
    again = find_prepared(*chosen, tmp_path)
    assert again is not None
    assert again.folder == found.folder
    local = tmp_path / f"here{file[-4:]}"
    local.write_bytes(server.files[file])
    assert prepare(dataset(*settings, f"path={local}"), tmp_path).digest == found.digest


def test_no_password_of_an_address_is_written_down(server, tmp_path):
    server.files["/plants.csv?X-Signature=hidden-98"] = server.files["/plants.csv"]
    address = server.address("/plants.csv").replace("://", "://me:hidden-99@")
    chosen = dataset("name=table", "label=kind", f"path={address}?X-Signature=hidden-98")
    found = prepare(chosen, tmp_path)
    assert found.source.startswith(server.address("/plants.csv?X-Signature=***#sha256="))
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if b"hidden-9" in file.read_bytes()]


def test_what_has_changed_there_is_prepared_anew(server, tmp_path):
    chosen = dataset("name=table", "label=kind", f"path={server.address('/plants.csv')}")
    before = prepare(chosen, tmp_path)
    server.files["/plants.csv"] = server.files["/plants.csv"].replace(b"rose", b"lily")
    assert find_prepared(*chosen, tmp_path) is None
    assert prepare(chosen, tmp_path).classes == ("lily", "oak") != before.classes


def test_prepared_once_it_is_found_while_its_server_is_away(server, tmp_path):
    chosen = dataset("name=table", "label=kind", f"path={server.address('/plants.csv')}")
    before = prepare(chosen, tmp_path)
    server.shutdown()
    server.server_close()
    assert prepare(chosen, tmp_path).folder == before.folder


def test_what_is_wrong_is_said_before_anything_is_done(server, tmp_path):
    with pytest.raises(UserError, match=r"dataset.path: no data are read from .*'htp://'"):
        dataset("name=image_folder", "path=htp://host/a.zip")
    missing = dataset("name=image_folder", f"path={server.address('/pictures.zip')}")
    with pytest.raises(UserError, match=r"/pictures.zip: there is nothing of that name"):
        find_prepared(*missing, tmp_path)
    nowhere = dataset("name=image_folder", "path=http://127.0.0.1:9/a.zip")
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:9/a.zip does not answer"):
        find_prepared(*nowhere, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("elsewhere", [True, False])
def test_what_is_gone_since_it_was_chosen_is_named(server, tmp_path, elsewhere):
    file, root = tmp_path / "pictures.csv", tmp_path / "root"
    file.write_text("image,label\na.png,oak\n")
    root.mkdir()
    server.files["/pictures.csv"] = file.read_bytes()
    path = server.address("/pictures.csv") if elsewhere else file
    chosen = dataset("name=image_table", "image=image", f"path={path}", f"root={root}")
    file.unlink()
    root.rmdir()
    with pytest.raises(UserError, match=r"^dataset image_table: \[Errno 2\] No such file"):
        find_prepared(*chosen, tmp_path)
