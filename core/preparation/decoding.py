"""Image files decoded, into an array file or to check them, by several processes if faster.

The processes are those of loky, joblib's executor. `multiprocessing` would import the parent's
main module again in each of them ("spawn"), which costs seconds where that is Prefect's engine
and fails in a script without a main guard; "fork" is unsafe in a process that runs torch's
threads. `joblib.Parallel` would keep its processes for five minutes after the last image, and
their environment cannot be chosen.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import threading
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import psutil

from torchyard.core.data.images.decoding import Findings, decode_image, measure
from torchyard.core.data.images.reading import READING, ImageReading
from torchyard.core.errors import RunError
from torchyard.core.preparation.arrays import ImageStatistics, SampleFile


@dataclass
class Decoded:
    """What came of some images of a split, in their order.

    Attributes:
        checksums: CRC-32 of each file, 0 where it cannot be read.
        failures: (index in the split, reason) of those that failed.
        findings: what the others are like.
        measures: `image_file.measure` of each, and `statistics` of those that did not fail, where
            images are only checked.
    """

    checksums: list[int] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    measures: list[tuple[int, int, int]] = field(default_factory=list)
    statistics: ImageStatistics = field(default_factory=ImageStatistics)


CHUNK_IMAGES = 256
CHUNK_BYTES = 32 << 20
FIRST_CHUNK = 64
# With less work left than this, starting processes takes longer than it saves.
MIN_PARALLEL_SECONDS = 1.0
PARENT_CHECK = 0.5  # seconds
FEEDER_END = 2.0  # seconds

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # there is a process for each core already
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONSAFEPATH": "1",  # no file in the working folder may stand in for a module
}


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes images of one split.

    Attributes:
        read: returns the bytes of the image file that a reference stands for.
        shape: (C, H, W).
        resize: scale images of another size, instead of refusing them.
        part: the split, for messages.
        file: for uint8 N x C x H x W; None: the images are only checked and measured.
        reading: the settings.
    """

    read: Callable[[Any], bytes]
    shape: tuple[int, int, int]
    resize: bool
    part: str
    file: SampleFile | None
    reading: ImageReading = READING

    def decode(self, start: int, references: Sequence[Any]) -> Decoded:
        """Decode the images of `references`: into the samples from index `start` on.

        The samples of images that cannot be read or decoded are zeros.

        Raises:
            OSError: the array cannot be written, as on a full disk.
        """
        pixels = np.zeros((len(references), *self.shape), dtype=np.uint8)
        done = Decoded()
        with warnings.catch_warnings():
            from PIL import Image  # noqa: F401 (not before `_initialize` has run: Ctrl-C would end it)

            warnings.simplefilter("ignore")  # odd metadata, for example: one warning per file
            for index, reference in enumerate(references):
                checksum, measured = 0, (0, 0, 0)
                try:
                    data = self.read(reference)
                    checksum = zlib.crc32(data)
                    pixels[index] = decode_image(
                        data, self.shape, self.resize, self.reading, done.findings
                    )
                    if self.file is None:
                        measured = measure(data, self.reading)
                except (OSError, ValueError) as error:
                    done.failures.append((start + index, str(error)))
                except Exception as error:  # a plugin's `read` may raise anything
                    done.failures.append((start + index, f"{type(error).__name__}: {error}"))
                done.checksums.append(checksum)
                done.measures.append(measured)
        if self.file is not None:
            self.file.write(start, pixels)
        elif len(done.failures) < len(pixels):
            failed = [index - start for index, _ in done.failures]
            done.statistics.add(np.delete(pixels, failed, axis=0) if failed else pixels)
        return done


class ParallelDecoding:
    """Decodes splits in parallel; a context manager that ends its processes.

    Processes are started once the remaining images would take longer than starting them, judged
    by the first ones. Everything is decoded in this process where there is one core, or where
    `read` cannot be sent to another process (a lambda, a class from a plugin file).

    Attributes:
        remaining: number of images that are still to come, in all splits together.
    """

    def __init__(self) -> None:
        self.remaining = 0
        self._executor: Any = None
        self._processes = 0

    def __enter__(self) -> ParallelDecoding:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._executor:
            if kind is not None:
                # With `kill_workers` and work that is left, a thread of loky can end in a KeyError.
                for child in psutil.Process().children():
                    with contextlib.suppress(psutil.Error):
                        if "popen_loky" in " ".join(child.cmdline()):
                            child.kill()
            self._executor.shutdown(kill_workers=kind is None)
            # Where it is still ending while Python exits, loky's tracker complains of a semaphore.
            for thread in threading.enumerate():
                if thread.name == "QueueFeederThread":
                    thread.join(FEEDER_END)

    def decode(self, decoder: ImageDecoder, references: Sequence[Any]) -> Iterator[Decoded]:
        """Decode one split, chunk by chunk.

        Raises:
            RunError: a process died.
            OSError: the array cannot be written.
        """
        size = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // int(np.prod(decoder.shape))))
        bounds = [0, *range(min(FIRST_CHUNK, size), len(references), size), len(references)]
        pending: deque[Future[Decoded]] = deque()
        done, end = 0, len(references)
        try:
            in_processes = self._executor and self._can_decode(decoder, references[:1])
            refused = self._executor and not in_processes
            for start, end in pairwise(bounds):
                self.remaining -= end - start
                if in_processes:
                    chunk = references[start:end]
                    pending.append(self._executor.submit(decoder.decode, start, chunk))
                    # Two chunks keep a process busy; more would only fill the memory.
                    if len(pending) <= 2 * self._processes:
                        continue
                    result = pending.popleft().result()
                else:
                    began = time.perf_counter()
                    result = decoder.decode(start, references[start:end])
                    pace = (time.perf_counter() - began) / (end - start)
                    if not refused and pace * self.remaining > MIN_PARALLEL_SECONDS:
                        in_processes = self._can_decode(decoder, references[:1])
                        refused = not in_processes
                done += len(result.checksums)
                yield result
            while pending:
                result = pending.popleft().result()
                done += len(result.checksums)
                yield result
        except BrokenExecutor as error:
            status = re.search(r"\((-?\d+)\)", str(error))  # "... {SIGKILL(-9)} ..."
            raise RunError(
                f"A decoding process ended with status {status[1] if status else 'unknown'} while "
                f"images {done} to {end - 1} of the {decoder.part} split were decoded.",
                str(error),
            ) from error

    def _can_decode(self, decoder: ImageDecoder, references: Sequence[Any]) -> bool:
        """Whether other processes can do it: starts them, and asks one."""
        import joblib
        from joblib.externals.loky import ProcessPoolExecutor

        try:
            arguments = pickle.dumps((decoder, references))
        except Exception:  # whatever an object's own pickling raises
            return False
        self._processes = joblib.cpu_count()  # 1 where the system has no semaphores, too
        if self._processes == 1:
            return False
        if not self._executor:
            self._executor = ProcessPoolExecutor(
                self._processes, initializer=_initialize, initargs=(os.getpid(),), env=ENVIRONMENT
            )
        return bool(self._executor.submit(_can_load, arguments).result())


def _can_load(arguments: bytes) -> bool:
    """In a decoding process: whether it finds the modules of the pickled objects.

    As bytes: an argument that loky cannot load ends all of its processes.
    """
    try:
        pickle.loads(arguments)
    except Exception:
        return False
    return True


def _initialize(parent: int) -> None:
    """In a decoding process: leave Ctrl-C to the parent, and end when the parent has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK)
    os._exit(1)
