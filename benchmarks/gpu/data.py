"""The images as one file of JPEGs, and how fast they are decoded.

`python -m benchmarks.gpu.data` makes the file from the archive of `make bench`.
"""

from __future__ import annotations

import argparse
import io
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks import archive
from benchmarks.gpu.job import Job, spread
from torchyard import ArraySplit, DatasetParams, EncodedSplit, RawData
from torchyard.core.preparation.prepare import prepare_dataset

NAME = "cifar10"  # the presets' data set: what is prepared here takes its place
PARTS = ("train", "test")
DECODED = 10_000  # images, to compare decoders
GPU_BATCHES = (256, 2048)


def pack(source: Path, target: Path, *, limit: int | None = None) -> None:
    """Write all images of an archive (so many a class and part), shuffled, to one .npz file."""
    found: dict[str, list[tuple[str, bytes]]] = {part: [] for part in PARTS}
    counts: dict[tuple[str, str], int] = {}
    for part, label, jpeg in archive.entries(source):
        counts[part, label] = counts.get((part, label), 0) + 1
        if limit is None or counts[part, label] <= limit:
            found[part].append((label, jpeg))
    classes = sorted({label for label, _ in found["train"]})
    arrays: dict[str, Any] = {"classes": np.array(classes)}
    for part, images in found.items():
        order = np.random.default_rng(0).permutation(len(images))
        jpegs = [images[number][1] for number in order]
        arrays[f"{part}_labels"] = np.array([classes.index(images[n][0]) for n in order], np.uint8)
        arrays[f"{part}_sizes"] = np.array([len(jpeg) for jpeg in jpegs], np.int32)
        arrays[f"{part}_jpegs"] = np.frombuffer(b"".join(jpegs), np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, **arrays)


def unpack(source: Path, part: str) -> tuple[list[bytes], np.ndarray, list[str]]:
    """JPEGs, class indices and class names of a part."""
    with np.load(source) as arrays:
        ends = np.cumsum(arrays[f"{part}_sizes"])
        whole = arrays[f"{part}_jpegs"].tobytes()
        starts = ends - arrays[f"{part}_sizes"]
        jpegs = [whole[start:end] for start, end in zip(starts, ends, strict=True)]
        return jpegs, arrays[f"{part}_labels"].astype(np.int64), arrays["classes"].tolist()


def pixels(jpeg: bytes) -> np.ndarray:
    """Decode one image to uint8 C x H x W."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).transpose(2, 0, 1)


def read(file: str, reference: tuple[int, int]) -> bytes:
    """The bytes from a first to a last place of a file."""
    start, size = reference
    with open(file, "rb", buffering=0) as opened:  # noqa: PTH123
        return os.pread(opened.fileno(), size, start)


class Images(DatasetParams):
    """The file's images, as JPEGs for the project's own decoder or decoded by Pillow's threads."""

    file: Path
    decoder: Literal["own", "pillow"]

    def build(self, downloads: Path) -> RawData:
        """Give both splits."""
        make = self._encoded if self.decoder == "own" else self._decoded
        splits: dict[str, Any] = {}
        for part in PARTS:
            jpegs, labels, classes = unpack(self.file, part)
            splits[part] = make(jpegs, labels, downloads / f"{part}.jpegs")
        return RawData(classes, **splits, source=str(self.file))

    def _encoded(self, jpegs: Sequence[bytes], labels: np.ndarray, target: Path) -> EncodedSplit:
        target.write_bytes(b"".join(jpegs))
        sizes = [len(jpeg) for jpeg in jpegs]
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        return EncodedSplit(
            read=partial(read, str(target)),
            references=list(zip(starts, sizes, strict=True)),
            names=[f"{target.name} {number}" for number in range(len(jpegs))],
            labels=labels,
            shape=pixels(jpegs[0]).shape,
            resize=False,
        )

    def _decoded(self, jpegs: Sequence[bytes], labels: np.ndarray, target: Path) -> ArraySplit:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return ArraySplit(np.stack(list(threads.map(pixels, jpegs, chunksize=256))), labels)


def prepare(job: Job) -> None:
    """Prepare the data for all sections; how fast the project decodes is a figure, too."""
    for decoder in ("own", "pillow"):
        with job.report.attempt(decoder):
            params = Images(file=job.source.absolute(), decoder=decoder)
            started = time.perf_counter()
            data = prepare_dataset(NAME, params, job.work / "cache", lambda *step: None)
            seconds = time.perf_counter() - started
            count = sum(data.counts.values())
            figures = {"images": count, "seconds": seconds, "images_per_second": count / seconds}
            job.report.add(figures, decoder)
            (job.work / "prepared").write_text(str(data.folder), "utf-8")
            return
    raise RuntimeError("the images could not be prepared")


def decode(job: Job) -> None:
    """Images per second of each decoder, and how far its pixels are from Pillow's."""
    from torchvision.io import ImageReadMode, decode_jpeg

    warnings.simplefilter("ignore")  # torchvision's decoders are deprecated from 0.29 on
    jpegs = unpack(job.source, "train")[0][: 64 if job.tiny else DECODED]
    encoded = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
    cores = os.cpu_count() or 1
    threads = ThreadPoolExecutor(cores)

    def pillow() -> torch.Tensor:
        return torch.from_numpy(np.stack([pixels(jpeg) for jpeg in jpegs]))

    def torchvision() -> torch.Tensor:
        return torch.stack(decode_jpeg(encoded, mode=ImageReadMode.RGB))

    def threaded() -> torch.Tensor:
        size = -(-len(encoded) // cores)
        parts = [encoded[at : at + size] for at in range(0, len(encoded), size)]
        decoded = threads.map(lambda part: decode_jpeg(part, mode=ImageReadMode.RGB), parts)
        return torch.stack([image for part in decoded for image in part])

    def on_gpu(batch: int) -> torch.Tensor:
        images = []
        for start in range(0, len(encoded), batch):
            chunk = encoded[start : start + batch]
            images += decode_jpeg(chunk, mode=ImageReadMode.RGB, device=job.device)
        return torch.stack(images)

    decoders: dict[str, Callable[[], torch.Tensor]] = {
        "Pillow, one thread": pillow,
        "torchvision, one thread": torchvision,
        f"torchvision, {cores} threads": threaded,
    }
    if job.device.type == "cuda":
        decoders |= {f"GPU, batches of {size}": partial(on_gpu, size) for size in GPU_BATCHES}
    expected = pillow()
    for name, decoder in decoders.items():
        if job.allows(3, name):
            with job.report.attempt(name):
                differences = (decoder().cpu().int() - expected.int()).abs()  # and warmed up
                rates = []
                for _ in range(3):
                    job.synchronize()
                    started = time.perf_counter()
                    decoder()
                    job.synchronize()
                    rates.append(len(expected) / (time.perf_counter() - started))
                figures = {
                    "mean_difference": float(differences.float().mean()),
                    "greatest_difference": int(differences.max()),
                }
                job.report.add(spread(rates) | figures, name)


def main() -> None:
    """Pack the archive."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.data", description=__doc__)
    parser.add_argument("--archive", type=Path, help="default: CIFAR10, as for `make bench`")
    parser.add_argument("--target", type=Path, default=archive.PACKED)
    options = parser.parse_args()
    source = options.archive or archive.find()
    if source is None:
        raise SystemExit(archive.ABSENT)
    pack(source, options.target)
    print(f"{options.target}: {options.target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
