"""Many image files to one array, in processes of their own where that is worth it.

The processes are started by hand and spoken to through pipes. `multiprocessing` would
import the parent's main module again in each of them (its "spawn" context), which costs
seconds where that is Prefect's engine and fails in a script without a main guard; "fork"
is unsafe in a process that runs torch's threads. A child here imports numpy, Pillow and
`core` only, and ends by itself when its parent does: its input closes.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from torchyard.core.errors import RunError
from torchyard.core.preparation.images import decode_image
from torchyard.pipelines.worker.process import start_child

Problem = tuple[int, str]  # index of the image in its split, reason

CHUNK_IMAGES = 256
CHUNK_BYTES = 32 << 20
FIRST_CHUNK = 64
# A process is ready 0.3 to 0.5 s after its start, so less work than this is done sooner here.
WORTH_PROCESSES = 1.0


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes images into their places in an array file.

    Attributes:
        read: gives the bytes of one reference.
        file: an .npy file of uint8 N x C x H x W, of full size already.
        offset: bytes before the first sample in it.
        shape: (C, H, W).
        resize: scale images of another size, instead of refusing them.
    """

    read: Callable[[Any], bytes]
    file: Path
    offset: int
    shape: tuple[int, int, int]
    resize: bool

    def decode(self, start: int, references: Sequence[Any]) -> list[Problem]:
        """Decode the images of `references` to the places from `start` on.

        Returns:
            what could not be read or decoded; its places are left zero.

        Raises:
            OSError: the array cannot be written, as on a full disk.
        """
        pixels = np.zeros((len(references), *self.shape), dtype=np.uint8)
        problems = []
        with warnings.catch_warnings():
            from PIL import Image

            warnings.simplefilter("ignore")  # such as of odd metadata, one a file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for place, reference in enumerate(references):
                try:
                    pixels[place] = decode_image(self.read(reference), self.shape, self.resize)
                except (OSError, ValueError) as error:
                    problems.append((start + place, str(error)))
                except Exception as error:  # a plugin's `read` may raise anything
                    problems.append((start + place, f"{type(error).__name__}: {error}"))
        # Written, not mapped: a full disk is an OSError here, and a fatal signal in a map.
        with self.file.open("r+b") as file:
            file.seek(self.offset + start * pixels[:1].nbytes)
            file.write(pixels.data)
        return problems


class DecodingProcesses:
    """Decodes splits in parallel; a context manager that ends its processes.

    Processes are started once what is left would take longer than starting them, judged by
    the first images. Where there is one core, or `read` cannot be sent to another process
    (a lambda, a plugin loaded from a loose file), everything is decoded here.

    Args:
        total: how many images there are in all splits together.
    """

    def __init__(self, total: int) -> None:
        self._remaining = total
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> DecodingProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # also frees a thread that waits for its answer
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def decode(
        self, decoder: ImageDecoder, references: Sequence[Any]
    ) -> Iterator[tuple[int, list[Problem]]]:
        """Decode one split, giving (number of images, problems) chunk by chunk.

        Raises:
            RunError: a process ended before its work did.
            OSError: the array cannot be written.
        """
        size = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // int(np.prod(decoder.shape))))
        first = min(FIRST_CHUNK, size)
        chunks = [references[:first]]
        chunks += [references[at : at + size] for at in range(first, len(references), size)]
        starts = [0, *range(first, len(references), size)]
        portable = self._cores > 1 and _portable(decoder)
        pending: deque[tuple[int, Future[list[Problem]]]] = deque()
        for start, chunk in zip(starts, chunks, strict=True):
            if portable and self._threads:
                work = self._threads.submit(self._send, decoder, start, chunk)
                pending.append((len(chunk), work))
                # Two chunks a process keep it busy; more would only fill the memory.
                if len(pending) > 2 * len(self._processes):
                    count, work = pending.popleft()
                    yield self._done(count, work.result())
                continue
            began = time.perf_counter()
            problems = decoder.decode(start, chunk)
            pace = (time.perf_counter() - began) / max(1, len(chunk))
            yield self._done(len(chunk), problems)
            if portable and pace * self._remaining > WORTH_PROCESSES:
                self._start()
        while pending:
            count, work = pending.popleft()
            yield self._done(count, work.result())

    def _done(self, count: int, problems: list[Problem]) -> tuple[int, list[Problem]]:
        self._remaining -= count
        return count, problems

    def _start(self) -> None:
        # There is a process a core already.
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        for _ in range(self._cores):
            process = start_child(
                "-c",
                "from torchyard.core.preparation.decoding import serve; serve()",
                environment=one_thread,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._processes.append(process)
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(self._cores, thread_name_prefix="decoding")

    def _send(self, decoder: ImageDecoder, start: int, references: Sequence[Any]) -> list[Problem]:
        process = self._idle.get()
        assert process.stdin
        assert process.stdout
        try:
            pickle.dump(pickle.dumps((decoder, start, references)), process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            process.kill()
            raise RunError(
                f"A decoding process ended with status {process.wait()} while it decoded images "
                f"{start} to {start + len(references) - 1} of {decoder.file.name}."
            ) from None
        finally:
            self._idle.put(process)  # a dead one too: no thread may wait for it forever
        if isinstance(answer, OSError):
            raise answer
        if isinstance(answer, str):  # the process could not load `read`: do it here
            return decoder.decode(start, references)
        return list(answer)


def _portable(decoder: ImageDecoder) -> bool:
    try:
        pickle.dumps(decoder)
    except Exception:  # whatever an object's own pickling raises
        return False
    return True


def serve() -> None:
    """Decode what comes through standard input until it closes: the child's whole life.

    Each request is a pickled, pickled (decoder, start, references); the answer is the list
    of problems, an OSError, or a text where the request could not be loaded.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints must not run into the answers
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        answer: list[Problem] | OSError | str
        try:
            decoder, start, references = pickle.loads(request)
        except Exception as error:  # a plugin's module or class that is not found here
            answer = f"{type(error).__name__}: {error}"
        else:
            try:
                answer = decoder.decode(start, references)
            except OSError as error:
                answer = error
        pickle.dump(answer, answers)
        answers.flush()
