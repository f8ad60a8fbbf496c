"""A run's record as one file: a .zip of texts, with a manifest that has the digest of each.

Nothing in it is unpickled. Whoever reads one takes it for a stranger's: it is small, has plain
files of the names below and no others, and each is as its manifest says.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from torchyard.core.config.parsing import settings_in
from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.sources import file_source
from torchyard.pipelines.proof.claim import Claim
from torchyard.pipelines.proof.signature import SIGNATURE, is_signed, signed

FORMAT = 1
MANIFEST, CONFIG, LOCK, PLUGINS = "MANIFEST.json", "config.yaml", "lock.txt", "plugins/"
TABLES = ("run.json", "data.json", "weights.json", "environment.json", "epochs.json")
FILES = (MANIFEST, CONFIG, LOCK, *TABLES)
PLUGIN = re.compile(r"plugins/\d+/(\w[\w-]*/)*\w[\w-]*\.py")
MOST_FILES = 500
MOST_BYTES = 16 * 2**20  # of a file, and of all together
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1  # flag of a member
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every member: the same record is the same file


class TamperedError(RunError):
    """A bundle that is not as it was written.

    Attributes:
        findings: what is wrong, one line each, beginning with the name of what it is wrong with.
    """

    def __init__(self, path: Path, findings: list[str]) -> None:
        super().__init__(f"{path} is not as it was written: {'; '.join(findings)}")
        self.findings = findings


def write_bundle(path: Path, claim: Claim, key: Path | None = None) -> str:
    """Write a claim as a file; returns the sha256 of its manifest, by which it can be known.

    Args:
        key: the file of a private key to sign the manifest with.

    Raises:
        UserError: it cannot be written, or not signed with that.
    """
    tables: dict[str, Any] = {
        "run.json": {"name": claim.name},
        "data.json": {"digest": claim.data},
        "weights.json": {"digest": claim.weights},
        "environment.json": dict(claim.environment),
        "epochs.json": dict(claim.epochs),
    }
    files = {name: _json(table) for name, table in tables.items()}
    text = yaml.safe_dump(claim.config, sort_keys=False, allow_unicode=True)
    files[CONFIG] = text.encode()
    files[LOCK] = "".join(f"{each}=={of}\n" for each, of in claim.packages.items()).encode()
    files |= {f"{PLUGINS}{name}": code for name, code in claim.plugins.items()}
    if odd := [name for name in files if name not in FILES and not PLUGIN.fullmatch(name)]:
        raise UserError(f"{odd[0]}: a plugin file of that name cannot be bundled")
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = _json({"format": FORMAT, "sha256": digests})
    signature = {} if key is None else {SIGNATURE: signed(manifest, key)}
    try:
        with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, content in {MANIFEST: manifest, **signature, **files}.items():
                member = zipfile.ZipInfo(name, EPOCH)
                member.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(member, content)
    except OSError as error:
        raise UserError(f"--to: {path}: {error.strerror or error}") from error
    return hashlib.sha256(manifest).hexdigest()


def read_bundle(path: Path, digest: str | None = None, key: Path | None = None) -> Claim:
    """Read a bundle, and find out whether it is as it was written.

    Args:
        digest: of the manifest, as `write_bundle` returned it, or its beginning.
        key: the file of the public key of who must have signed it.

    Raises:
        UserError: there is no such file, or it is no bundle; or none of the key.
        TamperedError: with all that is not as it was written.
    """
    files = _files(path)
    manifest, signature = files.pop(MANIFEST), files.pop(SIGNATURE, None)
    found, findings = hashlib.sha256(manifest).hexdigest(), []
    if digest is not None and not found.startswith(digest.lower()):
        findings.append(f"{MANIFEST}: its sha256 is {found}, not {digest}")
    if key is not None and signature is None:
        findings.append(f"{SIGNATURE}: is missing, nobody has signed it")
    elif key is not None and signature is not None and not is_signed(manifest, signature, key):
        findings.append(f"{SIGNATURE}: is not by the owner of {key}, or of another manifest")
    listed = _table(MANIFEST, manifest).get("sha256", {})
    findings += [f"{name}: is missing" for name in (*FILES[1:], *listed) if name not in files]
    for name, content in files.items():
        if name not in listed:
            findings.append(f"{name}: was added, the manifest has no such file")
        elif hashlib.sha256(content).hexdigest() != listed[name]:
            findings.append(f"{name}: was changed, the manifest has another digest")
    if findings:
        raise TamperedError(path, list(dict.fromkeys(findings)))
    return _claim(path, files)


def unpacked(claim: Claim, folder: Path, path: Path) -> list[Path]:
    """Write the plugin files below a folder; returns the folders that plugins are found in.

    Raises:
        TamperedError: the configuration names a plugin file that is none of them.
    """
    for name, code in claim.plugins.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(code)
    folders = sorted({folder / name.partition("/")[0] for name in claim.plugins})
    have = {file_source(file).identity for each in folders for file in each.glob("*.py")}
    wanted = {
        what: identity
        for what, identity in claim.config.get("plugins", {}).items()
        if " " in what and identity.startswith("sha256:")
    }
    if missing := [what for what, identity in wanted.items() if identity not in have]:
        said = "its file is not the one that the configuration names by its sha256"
        raise TamperedError(path, [f"{what}: {said}" for what in missing])
    return folders


def _files(path: Path) -> dict[str, bytes]:
    """The members by name.

    Raises:
        UserError: it cannot be read as a bundle at all.
        TamperedError: it has members that no bundle has.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # to open a pipe waits, a device may never end
            raise UserError(f"{path}: is no file")
        if about.st_size > 2 * MOST_BYTES:
            raise TamperedError(path, [f"the file: has {about.st_size:,} bytes, too many"])
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if findings := list(_odd(members)):
                raise TamperedError(path, findings)
            names = [member.filename for member in members]
            if MANIFEST not in names:
                raise UserError(f"{path}: is no bundle of torchyard's: it has no {MANIFEST}")
            return {member.filename: archive.read(member) for member in members}
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise TamperedError(path, [f"the file: is damaged or cut short: {error}"]) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _odd(members: list[zipfile.ZipInfo]) -> Iterator[str]:
    if len(members) > MOST_FILES:
        yield f"the file: has {len(members):,} members, a bundle {MOST_FILES} at most"
        return
    if (size := sum(member.file_size for member in members)) > MOST_BYTES:
        yield f"the file: unpacks to {size:,} bytes, a bundle to {MOST_BYTES:,} at most"
        return
    for name, count in Counter(member.orig_filename for member in members).items():
        if count > 1:
            yield f"{name}: is there {count} times"
    for member in members:
        name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
        if name not in (SIGNATURE, *FILES) and not PLUGIN.fullmatch(name):
            yield f"{name}: was added, no bundle has a file of that name"
        elif kind not in (0, stat.S_IFREG):
            yield f"{name}: is a link or a folder, not a plain file"
        elif member.flag_bits & ENCRYPTED or member.compress_type not in METHODS:
            yield f"{name}: is encrypted or packed in another way than bundles are"


def _claim(path: Path, files: Mapping[str, bytes]) -> Claim:
    try:
        run, data, weights, environment, epochs = (_table(each, files[each]) for each in TABLES)
        packages = dict(line.split("==") for line in files[LOCK].decode().split())
        own = {n.removeprefix(PLUGINS): c for n, c in files.items() if n.startswith(PLUGINS)}
        return Claim(
            name=str(run["name"]),
            config=settings_in(files[CONFIG].decode(), f"{path}: {CONFIG}"),
            weights=str(weights["digest"]),
            data=str(data["digest"]),
            environment={key: str(value) for key, value in environment.items()},
            epochs={key: float(value) for key, value in epochs.items()},
            packages=packages,
            plugins=own,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is no bundle that this version can read: {error!r}") from error


def _json(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode()


def _table(name: str, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{name}: is no table")
    if name == MANIFEST:
        listed, written = found.get("sha256"), found.get("format")
        if written != FORMAT or not isinstance(listed, dict):
            raise UserError(f"{name}: is of another format than {FORMAT}, which can be read")
    return found
