"""The report and the comparison as a browser lays them out: small, large, dark, printed."""

from __future__ import annotations

import json
import re

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
        "Settings that differ",
        "Results",
        "Accuracy against cost",
        "Learning curves",
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
    for table in page.locator("table:visible").all():  # none is cut
        box = table.bounding_box()
        assert box["x"] + box["width"] <= size[0]
    if size[0] < 640:  # tables are cards
        assert page.locator("thead:visible").count() == 0
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


def test_a_page_is_printed_on_three_sheets_with_what_is_folded(page, addresses, tmp_path) -> None:
    page.goto(addresses["report.html"])
    file = tmp_path / "report.pdf"
    page.pdf(path=file, format="A4", print_background=True)
    assert 1 <= len(re.findall(rb"/Type /Page\b", file.read_bytes())) <= 3
    page.emulate_media(media="print")
    expect(page.get_by_text("torch version")).to_be_visible()
    expect(page.locator("pre.settings")).to_be_visible()


def test_a_cell_of_the_matrix_shows_its_images(page, addresses) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(addresses["report.html"])
    panel, matrix = page.locator(".cell"), page.locator(".matrix")
    expect(panel.locator("h3")).to_contain_text("→")  # the most frequent confusion
    expect(panel.locator("img").first).to_be_visible()
    confusions = json.loads(page.locator("#confusions").text_content())
    left, top, width, height = confusions["box"]
    true, guess, count, shown = confusions["cells"][1]
    area = matrix.locator("svg").bounding_box()
    across, down = ((place + 0.5) / len(confusions["classes"]) for place in (guess, true))
    place = {
        "x": area["width"] * (left + width * across),
        "y": area["height"] * (top + height * down),
    }
    matrix.click(position=place)
    expect(panel.locator("p").first).to_contain_text(f"{count} of")
    expect(panel.locator("h3")).to_have_text(f"{true} → {guess}")
    expect(panel.locator("img")).to_have_count(len(shown))
    matrix.press("ArrowRight" if guess < 9 else "ArrowLeft")
    expect(panel.locator("h3")).not_to_have_text(f"{true} → {guess}")
