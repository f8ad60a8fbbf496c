"""What a person sees of torchyard's runs in MLflow's own pages, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from torchyard.core.tracking.queries.table import COLUMNS
from torchyard.core.tracking.queries.view import NOT_SHOWN

pytestmark = pytest.mark.slow  # three runs, a server, a browser

TABLE = "/#/experiments/1/runs?viewStateShareKey=torchyard"


def opened(page, site, path: str, shows: str) -> None:
    """Go to an address, wait until a text is there."""
    page.goto(site.address + path)
    expect(page.get_by_text(shows).first).to_be_visible()


def test_the_table_has_the_names_and_the_columns_that_matter(page, site, tmp_path) -> None:
    opened(page, site, TABLE, "matching runs")
    for run in site.runs:
        expect(page.get_by_role("link", name=site.name(run))).to_be_visible()
    recorded = [site.client.get_run(run).data for run in site.runs.values()]
    columns = [
        column
        for name, column in COLUMNS.items()
        if column.place != "attributes" and name not in NOT_SHOWN
    ]
    # MLflow shows no column of what no run has: a schedule, the figures of several seeds.
    shown = [
        column.key
        for column in columns
        if any(column.key in getattr(data, column.place) for data in recorded)
    ]
    assert len(shown) >= len(columns) - 4
    for key in shown:
        expect(page.get_by_role("columnheader", name=key, exact=True).first).to_be_visible()
    page.screenshot(path=tmp_path / "table.png")


def test_a_run_says_its_result_first_and_links_its_model(page, site, tmp_path) -> None:
    run = site.client.get_run(site.runs["sgd"])
    opened(page, site, f"/#/experiments/1/runs/{run.info.run_id}", "Weakest: ")
    percent = f"{100 * run.data.metrics['test/accuracy']:.1f} %"
    expect(page.get_by_role("heading", name=f"lenet on digits: {percent}")).to_be_visible()
    page.get_by_text("Show more", exact=True).first.click()
    expect(page.get_by_role("heading", name="Most confused")).to_be_visible()
    for metric in ("train/loss", "test/accuracy", "test/recall/3", "time/train_seconds"):
        expect(page.get_by_role("link", name=metric, exact=True)).to_be_visible()
    expect(page.get_by_text("Logged models (1)")).to_be_visible()
    expect(page.locator("a[href$='#/models/digits/versions/1']")).to_be_visible()
    page.screenshot(path=tmp_path / "run.png")


def test_two_runs_are_compared_from_the_table(page, site, tmp_path) -> None:
    opened(page, site, TABLE, "matching runs")
    for run in ("adam", "sgd"):
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=site.name(run)))
        row.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    expect(page.get_by_text("Parallel Coordinates Plot")).to_be_visible()
    setting = page.get_by_role("row").filter(has_text="optimizer.name")
    for value in ("adam", "sgd"):
        expect(setting.get_by_text(value, exact=True)).to_be_visible()
    page.screenshot(path=tmp_path / "compare.png")


def test_pictures_and_the_report_open_among_the_artifacts(page, site, tmp_path) -> None:
    run_id = site.runs["adam"]
    opened(page, site, f"/#/experiments/1/runs/{run_id}/artifacts", "confusion_matrix.png")
    page.get_by_text("confusion_matrix.png").first.click()
    picture = page.locator("img[src*=blob]").or_(page.locator("img[src*='confusion_matrix']")).first
    expect(picture).to_be_visible()
    assert picture.evaluate("async each => (await each.decode(), each.naturalWidth)") > 300
    page.screenshot(path=tmp_path / "picture.png")

    page.get_by_text("report.html").first.click()
    report = page.frame_locator("iframe")
    expect(report.get_by_role("heading", name=re.compile(r"digits.* ± "))).to_be_visible()
    expect(report.get_by_text(site.name("adam")).first).to_be_visible()
    expect(report.get_by_role("heading", name="Calibration")).to_be_attached()
    page.screenshot(path=tmp_path / "report.png")


def test_the_model_has_its_champion_and_the_run_it_is_from(page, site, tmp_path) -> None:
    opened(page, site, "/#/models/digits", "Version 1")
    expect(page.get_by_text("@ champion")).to_be_visible()
    expect(page.get_by_text("beats_champion: there was no champion before")).to_be_visible()
    page.screenshot(path=tmp_path / "model.png")
    page.get_by_role("link", name="Version 1").click()
    page.get_by_role("link", name=site.name("sgd")).click()
    expect(page.get_by_role("heading", name=site.name("sgd"))).to_be_visible()
