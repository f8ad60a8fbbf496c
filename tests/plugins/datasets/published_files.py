"""Files as CIFAR's publisher offers them, small, and a server to download them from."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from torchyard import PreparedDataset, UserError
from torchyard.core.preparation.prepare import prepare_dataset

RNG = np.random.default_rng(5)
NAMES = ["airplane", "automobile", "bird", "cat", "deer"]
NAMES += ["dog", "frog", "horse", "ship", "truck"]


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; breaks off half-way in files named in `broken`."""

    requests: list[str]
    broken: set[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path not in self.broken:
            return super().do_GET()
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        return None

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.handler = type("OwnHandler", (Handler,), {"requests": [], "broken": set()})
        self.http = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(self.handler, directory=str(folder))
        )
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def python2_pickle(batch: dict[str, Any]) -> bytes:
    """A pickle as Python 2 wrote CIFAR's: protocol 2, the text being byte strings."""

    class Old(pickle._Pickler):  # the one in Python: its dispatch table can be changed
        dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

        def save_text(self, text: str | bytes) -> None:
            data = text.encode("latin1") if isinstance(text, str) else text
            head = (
                b"U" + bytes([len(data)])
                if len(data) < 256
                else b"T" + len(data).to_bytes(4, "little")
            )
            self.write(head + data)
            self.memoize(text)

        dispatch[str] = save_text
        dispatch[bytes] = save_text

    buffer = io.BytesIO()
    Old(buffer, protocol=2).dump(batch)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar10_members(images: int = 20) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        members[name] = {
            "batch_label": f"of {name}",
            "labels": [n % 10 for n in range(images)],
            "data": RNG.integers(0, 256, (images, 3072), dtype=np.uint8),
            "filenames": [f"{n}.png" for n in range(images)],
        }
    members["batches.meta"] = {"num_cases_per_batch": images, "label_names": NAMES, "num_vis": 3072}
    return members


def archive(members: dict[str, Any], path: Path, folder: str = "cifar-10-batches-py") -> str:
    """Write the members as CIFAR's archive is; returns its md5."""
    with tarfile.open(path, "w:gz") as packed:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else python2_pickle(content)
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return hashlib.md5(path.read_bytes()).hexdigest()


def prepared(params: Any, cache: Path) -> PreparedDataset:
    return prepare_dataset(params.dataset, params, cache, lambda *_: None)


def problem(params: Any, cache: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepared(params, cache)
    left = [f.name for f in cache.rglob("*") if f.is_file() and f.suffix != ".lock"]
    assert not [name for name in left if name.endswith((".part", ".npy", ".json"))]
    (only,) = caught.value.problems
    assert only.startswith(f"dataset {params.dataset}: ")
    return only
