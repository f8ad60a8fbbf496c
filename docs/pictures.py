"""Make the pictures of the report and of a comparison: `make pictures`. Needs Chromium."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDTH, COLOURS = 1100, 64
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def torchyard(folder: Path, *arguments: str) -> str:
    """Run a command in a folder of its own; what it printed."""
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "torchyard", *arguments],
        cwd=folder, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout


def main() -> None:
    """Train two networks, compare them, and photograph both pages."""
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        torchyard(folder, "run", "digits", "train.validation=0.15", "promote=digits", "--quiet")
        better = ("train.epochs=20", "augmentations=[affine]")
        torchyard(folder, "run", "digits", "train.validation=0.15", *better, "--quiet")
        torchyard(folder, "compare", "champion", "latest", "--html", "comparison.html")
        reports = sorted(folder.rglob("report.html"), key=lambda page: page.stat().st_mtime)
        pages = {"report": (reports[-1], 860), "comparison": (folder / "comparison.html", 760)}
        browser = next(filter(None, map(shutil.which, BROWSERS)))
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for name, (page, height) in pages.items():
            tab = opened.new_page(viewport={"width": WIDTH, "height": height})
            tab.goto(page.as_uri())
            shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
            few = shot.quantize(COLOURS, Image.Quantize.MAXCOVERAGE)  # with those of the runs
            few.save(IMAGES / f"{name}.png", optimize=True)
        opened.close()


if __name__ == "__main__":
    main()
