"""The report and the comparison as a browser lays them out: small, large, dark, printed."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.slow

SECTIONS = {
    "report.html": [
        "Learning curves",
        "Classes, from weakest to strongest",
        "Confusions",
        "Most confident mistakes",
        "Calibration",
        "How it was trained",
        "Data, machine and time",
        "Run it again",
    ],
    "comparison.html": [
        "Learning curves",
        "Accuracy against cost",
        "Results",
        "Settings that differ",
        "Classes, those that differ most first",
    ],
}
WIDER_THAN_THE_WINDOW = (
    "document.documentElement.scrollWidth - document.documentElement.clientWidth"
)
BRIGHTNESS = """() => getComputedStyle(document.body).backgroundColor
    .match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3"""


@pytest.fixture(scope="module")
def addresses(made_runs) -> dict[str, str]:
    from mlflow import MlflowClient

    folder, runs = made_runs
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    report = client.download_artifacts(runs["linear"], "report.html", str(folder))
    return {
        "report.html": f"file://{report}",
        "comparison.html": (folder / "comparison.html").as_uri(),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(390, 844), (1366, 900)], ids=["telephone", "desktop"])
@pytest.mark.parametrize("name", SECTIONS)
def test_a_page_fits_the_window(page, addresses, name, size, scheme, tmp_path) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    page.goto(addresses[name])
    expect(page.locator("h2")).to_have_text(SECTIONS[name])
    assert page.evaluate(WIDER_THAN_THE_WINDOW) == 0
    bars = page.locator("td.bar").first.bounding_box()  # a table may scroll, not its main column
    assert bars["x"] + bars["width"] <= size[0]
    assert (page.evaluate(BRIGHTNESS) > 128) == (scheme == "light")
    page.screenshot(path=tmp_path / f"{name}.png", full_page=True)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_page_is_printed_black_on_white_within_the_paper(page, addresses, name, tmp_path) -> None:
    page.set_viewport_size({"width": 680, "height": 1000})  # A4 less its margins
    page.emulate_media(media="print", color_scheme="dark")
    page.goto(addresses[name])
    page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
    assert page.evaluate(WIDER_THAN_THE_WINDOW) == 0
    assert page.evaluate(BRIGHTNESS) == 255
