"""A bundle is read as it was written, and whatever was changed in it is named."""

import hashlib
import json
import os
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchyard.core.errors import UserError
from torchyard.core.hosting.sources import file_source
from torchyard.pipelines.proof.bundle import (
    MANIFEST,
    TamperedError,
    read_bundle,
    unpacked,
    write_bundle,
)
from torchyard.pipelines.proof.claim import Claim

CODE = b"import _scale\n"


@pytest.fixture
def claim(tmp_path):
    files = {"0/mine.py": CODE, "0/_scale.py": b"SCALE = 3\n"}
    for name, code in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(code)
    identity = file_source(tmp_path / "0" / "mine.py").identity
    return Claim(
        name="mine·sgd·digits #1",
        config={
            "dataset": {"name": "digits"},
            "train": {"seed": 0, "threads": None},
            "plugins": {"model mine": identity},
        },
        weights="ab" * 32,
        data="cd" * 18,
        environment={"device": "cpu", "threads": "2"},
        epochs={"1": 0.5, "2": 0.25},
        packages={"numpy": "2.3.1", "torch": "2.15.0"},
        plugins=files,
    )


@pytest.fixture
def bundle(claim, tmp_path):
    path = tmp_path / "run.zip"
    write_bundle(path, claim)
    return path


def keys(folder, name):
    """Files with a pair of keys, as ssh-keygen and as openssl write them."""
    key, none = Ed25519PrivateKey.generate(), serialization.NoEncryption()
    secret = serialization.BestAvailableEncryption(b"secret")
    form, public = serialization.PrivateFormat, serialization.PublicFormat
    pem, ssh = serialization.Encoding.PEM, serialization.Encoding.OpenSSH
    contents = {
        "private": key.private_bytes(pem, form.OpenSSH, none),
        "private_pem": key.private_bytes(pem, form.PKCS8, none),
        "protected": key.private_bytes(pem, form.PKCS8, secret),
        "public": key.public_key().public_bytes(ssh, public.OpenSSH),
        "public_pem": key.public_key().public_bytes(pem, public.SubjectPublicKeyInfo),
    }
    paths = {each: folder / f"{name}.{each}" for each in contents}
    for each, path in paths.items():
        path.write_bytes(contents[each])
    return SimpleNamespace(**paths)


def rewritten(path, change, *, manifest=False):
    """The bundle with its files changed by a function; with a new manifest if asked for."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    if manifest:
        del files[MANIFEST]
        digests = {name: hashlib.sha256(each).hexdigest() for name, each in files.items()}
        files[MANIFEST] = json.dumps({"format": 1, "sha256": digests}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def findings(path, **named):
    with pytest.raises(TamperedError) as caught:
        read_bundle(path, **named)
    return caught.value.findings


def test_it_is_read_as_it_was_written_and_the_same_is_the_same_file(claim, tmp_path):
    digests = [write_bundle(tmp_path / name, claim) for name in ("a.zip", "b.zip")]
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert digests[0] == digests[1]
    assert read_bundle(tmp_path / "a.zip", digests[0]) == claim
    assert read_bundle(tmp_path / "a.zip", digests[0][:8].upper()) == claim
    [folder] = unpacked(claim, tmp_path / "out", tmp_path / "a.zip")
    assert sorted(each.name for each in folder.iterdir()) == ["_scale.py", "mine.py"]
    assert claim.settled()["train"]["threads"] == 2


CHANGED = {
    "config.yaml": (b"seed: 0", b"seed: 1"),
    "plugins/0/mine.py": (b"import", b"print(1)\nimport"),
    "plugins/0/_scale.py": (b"3", b"4"),
    "weights.json": (b"abab", b"baba"),
    "data.json": (b"cdcd", b"dcdc"),
    "environment.json": (b'"2"', b'"4"'),
    "lock.txt": (b"2.15.0", b"2.14.0"),
    "epochs.json": (b"0.25", b"0.24"),
    "run.json": (b"#1", b"#2"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_file_that_was_changed_is_named(bundle, name):
    def change(files):
        assert CHANGED[name][0] in files[name]
        files[name] = files[name].replace(*CHANGED[name])

    rewritten(bundle, change)
    assert findings(bundle) == [f"{name}: was changed, the manifest has another digest"]


def test_a_file_that_was_added_or_removed_is_named(bundle):
    rewritten(bundle, lambda files: files.update({"plugins/0/more.py": b"1"}))
    added = "plugins/0/more.py: was added, the manifest has no such file"
    assert findings(bundle) == [added]
    rewritten(bundle, lambda files: files.pop("lock.txt"))
    assert findings(bundle) == ["lock.txt: is missing", added]


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "plugins/0/../../e.py", "e.pkl",
                                  "plugins/0/e.pth", "plugins/e.py", "plugins/0/.py", "CONFIG.YAML",
                                  "plugins/0/a\\..\\e.py"])  # fmt: skip
def test_no_other_name_is_taken(bundle, name):
    rewritten(bundle, lambda files: files.update({name: b""}), manifest=True)
    assert findings(bundle) == [f"{name}: was added, no bundle has a file of that name"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_named(bundle):
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr("config.yaml", b"model: evil")
    assert findings(bundle) == ["config.yaml: is there 2 times"]


def test_a_link_is_named(bundle):
    with zipfile.ZipFile(bundle, "a") as archive:
        link = zipfile.ZipInfo("plugins/0/link.py")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert findings(bundle) == ["plugins/0/link.py: is a link or a folder, not a plain file"]


def test_encrypted_or_packed_otherwise_is_named(bundle):
    rewritten(bundle, lambda files: None)
    data = bytearray(bundle.read_bytes())
    at = data.rfind(b"PK\x01\x02", 0, data.rfind(b"lock.txt"))
    struct.pack_into("<H", data, at + 8, 1)  # the flags in the list of members
    bundle.write_bytes(data)
    said = "is encrypted or packed in another way than bundles are"
    assert findings(bundle) == [f"lock.txt: {said}"]
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("config.yaml", b"")
    assert findings(bundle) == [f"config.yaml: {said}"]


def test_a_bomb_is_not_unpacked(bundle):
    with zipfile.ZipFile(bundle, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("plugins/0/zeros.py", bytes(20 * 2**20))
    assert findings(bundle)[0].startswith("the file: unpacks to 20,97")
    with zipfile.ZipFile(bundle, "w") as archive:
        for index in range(600):
            archive.writestr(f"plugins/0/m{index}.py", b"")
    assert findings(bundle) == ["the file: has 600 members, a bundle 500 at most"]


def test_a_manifest_that_was_written_anew_has_another_digest(claim, bundle):
    digest = write_bundle(bundle, claim)
    rewritten(
        bundle, lambda files: files.update({"weights.json": b'{"digest": "00"}'}), manifest=True
    )
    assert read_bundle(bundle).weights == "00"  # it is consistent: training again tells
    [said] = findings(bundle, digest=digest)
    assert said.startswith(f"{MANIFEST}: its sha256 is ")
    assert said.endswith(f"not {digest}")


def test_a_signature_tells_who_wrote_it_and_of_what(claim, bundle, tmp_path):
    ours, others = keys(tmp_path, "ours"), keys(tmp_path, "others")
    assert findings(bundle, key=ours.public) == ["MANIFEST.sig: is missing, nobody has signed it"]
    for key in (ours.private, ours.private_pem):
        write_bundle(bundle, claim, key)
        assert read_bundle(bundle, key=ours.public) == read_bundle(bundle) == claim
        assert read_bundle(bundle, key=ours.public_pem) == claim
        [said] = findings(bundle, key=others.public)
        assert (
            said == f"MANIFEST.sig: is not by the owner of {others.public}, or of another manifest"
        )
    with zipfile.ZipFile(bundle) as archive:
        signature = archive.read("MANIFEST.sig")

    def forged(files):
        del files["MANIFEST.sig"]
        files["weights.json"] = b'{"digest": "00"}'

    rewritten(bundle, forged, manifest=True)
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr("MANIFEST.sig", signature)
    [said] = findings(bundle, key=ours.public)
    assert said.startswith("MANIFEST.sig: is not by the owner of ")


def test_what_is_no_key_is_refused_and_nothing_is_written(claim, bundle, tmp_path):
    ours, path = keys(tmp_path, "ours"), tmp_path / "new.zip"
    write_bundle(bundle, claim, ours.private)
    for key, said in (
        (tmp_path / "none", "--sign: .*none: No such file"),
        (ours.public, "--sign: .* is no private key of Ed25519; `ssh-keygen"),
        (ours.protected, "--sign: .* has a passphrase"),
    ):
        with pytest.raises(UserError, match=said):
            write_bundle(path, claim, key)
    assert not path.exists()
    with pytest.raises(UserError, match=r"--key: .* is no public key of Ed25519"):
        read_bundle(bundle, key=ours.private)


def test_code_that_is_not_what_the_configuration_names_is_named(bundle, tmp_path):
    change = {"plugins/0/_scale.py": b"SCALE = 4\n"}
    rewritten(bundle, lambda files: files.update(change), manifest=True)
    with pytest.raises(TamperedError, match="model mine: its file is not the one that the conf"):
        unpacked(read_bundle(bundle), tmp_path / "out", bundle)


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_bytes_are_changed_it_is_refused_or_the_same(claim, bundle, data):
    whole = bundle.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255))
    cut = data.draw(st.booleans())
    other = bundle.with_name("other.zip")
    other.write_bytes(whole[:at] if cut else whole[:at] + bytes([value]) + whole[at + 1 :])
    # TamperedError has its findings; UserError: the manifest itself is none of ours.
    with suppress(TamperedError, UserError):
        assert read_bundle(other) == claim


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        read_bundle(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("text")
    assert findings(tmp_path / "text.zip")[0].startswith("the file: is damaged or cut short")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(UserError, match=f"is no bundle of torchyard's: it has no {MANIFEST}"):
        read_bundle(tmp_path / "empty.zip")
    for content in (b"[]", b"{}", b'{"format": 2, "sha256": {}}', b"{"):
        with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
            archive.writestr(MANIFEST, content)
        with pytest.raises(UserError, match=MANIFEST):
            read_bundle(tmp_path / "odd.zip")
    assert not Path("MANIFEST.json").exists()


def test_what_is_no_file_or_nested_without_end_is_refused(bundle, tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "device.zip").symlink_to("/dev/zero")
    for name in ("pipe.zip", "device.zip"):
        with pytest.raises(UserError, match=f"{name}: is no file"):
            read_bundle(tmp_path / name)
    with (tmp_path / "huge.zip").open("wb") as file:
        file.truncate(2**40)
    assert findings(tmp_path / "huge.zip") == ["the file: has 1,099,511,627,776 bytes, too many"]
    deep = b'{"1":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    rewritten(bundle, lambda files: files.update({"epochs.json": deep}), manifest=True)
    with pytest.raises(UserError, match="maximum recursion depth"):
        read_bundle(bundle)
