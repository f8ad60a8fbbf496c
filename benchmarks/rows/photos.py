"""Photos of several sizes: decoding them for the training, and how much memory that takes."""

from __future__ import annotations

from benchmarks import photo_folder
from benchmarks.archive import ABSENT
from benchmarks.bench import Bench, Skipped
from benchmarks.comparison import Comparison, Series, Target, alternate
from benchmarks.home import PEERS

TITLE = "Photos: 3,000 JPEGs of about 500x375, a random part scaled to 224x224, and a flip"
OURS, TORCHVISION, TIMM = "torchyard", "ImageFolder + DataLoader", "timm's loader"
PLAIN, TENFOLD = "3,000 photos", "30,000 photos"
WORKERS, BATCH, SIZE = 2, 64, 224


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """An epoch beside torchvision's and timm's; then over ten times the photos."""
    if bench.source is None:
        raise Skipped(ABSENT)
    if not PEERS.exists():
        raise Skipped("needs the peers in benchmarks/.venv, which `make bench` installs")
    folder, tenfold = bench.scratch / "photos", bench.scratch / "tenfold"
    photo_folder.make(bench.source, folder, bench.images(3_000))
    with bench.home("photos") as home, bench.home("peers") as peers:

        def ours() -> float:
            found = home.script("own.photos", folder, home.cache, WORKERS, BATCH, SIZE)
            return float(found["images"] / found["seconds"])

        def theirs(loader: str) -> float:
            options = (folder, WORKERS, BATCH, SIZE)
            found = peers.script("peers.photos", loader, *options, python=PEERS)
            return float(found["images"] / found["seconds"])

        ours()  # prepares
        contenders = {
            OURS: ours,
            TORCHVISION: lambda: theirs("torchvision"),
            TIMM: lambda: theirs("timm"),
        }
        found = alternate(bench.rounds(3), contenders, bench.say)
    weights = []
    photo_folder.repeated(folder, tenfold, 10)
    for source in (tenfold, folder):
        with bench.home("memory") as home:
            home.script("own.photos", source, home.cache, WORKERS, BATCH, SIZE)  # prepares
            with home.weighed() as weight:
                home.script("own.photos", source, home.cache, WORKERS, BATCH, SIZE)
            weights.append(weight.most_anonymous)
    speed = Comparison(
        "Images per second",
        "images/s",
        True,
        tuple(Series(name, tuple(values)) for name, values in found.items()),
        (
            Target("≥ 1.5 × torchvision's", OURS, 1.5, True, (TORCHVISION,)),
            Target("≥ 1.1 × timm's", OURS, 1.1, True, (TIMM,)),
        ),
    )
    memory = Comparison(
        "Peak of anonymous memory in an epoch",
        "MiB",
        False,
        tuple(
            Series(name, (weight,)) for name, weight in zip((TENFOLD, PLAIN), weights, strict=True)
        ),
        (Target("ten times the photos add at most 10 %", TENFOLD, 1.1, False, (PLAIN,)),),
    )
    return [speed, memory], [
        f"Batches of {BATCH}, float32 and normalized, from {WORKERS} threads (torchyard) or "
        "processes (the others); starting them, imports and packing do not count. The photos are "
        "CIFAR-10's images, enlarged, with texture and noise, at quality 90."
    ]
