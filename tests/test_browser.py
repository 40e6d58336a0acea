"""The playground in a real JupyterLab in a real Chromium: what a reader's hands and eyes would find."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

CODE = """import nnlib
from nnlib import widgets
data = nnlib.load_dataset("standin", n_train=3000, n_valid=300, n_test=100)
playground = widgets.training_playground(data)
playground.controls["epochs"].value = 10_000
playground"""
TOKEN = "of-this-test"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start JupyterLab on a notebook, with settings of its own; return the notebook's address."""
    pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: no test in a browser")
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "try.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR")
    env = os.environ | {f"JUPYTER_{name}": str(folder / name) for name in own} | {"IPYTHONDIR": str(folder / "ipython")}
    env |= {f"JUPYTERLAB_{name}_DIR": str(folder / name) for name in ("SETTINGS", "WORKSPACES")}
    options = [f"--notebook-dir={folder}", f"--port={port}", f"--IdentityProvider.token={TOKEN}", "--allow-root"]
    options += ["--no-browser", "--LabApp.news_url=None"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = (folder / "log.txt").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", *options], env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api?token={TOKEN}", folder / "log.txt")
        yield f"http://127.0.0.1:{port}/lab/tree/try.ipynb?token={TOKEN}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def _wait_for(address: str, log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def page(lab: str) -> Iterator:
    """The notebook, opened in Chromium, its cells executed; ``page.said`` collects the console's errors."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if not chromium:
        pytest.skip("no Chromium on this machine: no test in a browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.said = []
        page.on("console", lambda message: page.said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(lab)
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.get_by_role("button", name="Start", exact=True).wait_for(timeout=60_000)
        if folder := os.environ.get("NNLIB_SCREENSHOTS"):
            page.picture = lambda name: page.screenshot(path=str(Path(folder) / f"{name}.png"))
        else:
            page.picture = lambda name: None
        yield page
        browser.close()


def _shown(page) -> str:
    """The address of the picture, which is another one for each new picture."""
    return page.locator(".jp-OutputArea img").first.get_attribute("src")


def _until_shown_other_than(page, before: str) -> str:
    page.wait_for_function("old => document.querySelector('.jp-OutputArea img').src != old", arg=before, timeout=20_000)
    return _shown(page)


def _press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


@pytest.mark.slow
def test_playground_starts_pauses_and_stops(page):
    empty = _shown(page)
    _press(page, "Start")
    first = _until_shown_other_than(page, empty)
    _until_shown_other_than(page, first)
    page.picture("playground")
    _press(page, "Pause")
    page.get_by_role("button", name="Resume", exact=True).wait_for()
    page.wait_for_timeout(1500)  # what was under way when the click came
    standing = _shown(page)
    page.wait_for_timeout(1500)
    assert _shown(page) == standing
    _press(page, "Resume")
    _until_shown_other_than(page, standing)
    _press(page, "Stop")
    page.get_by_text("steps, stopped").wait_for(timeout=20_000)
    assert not page.said


@pytest.mark.slow
def test_a_slider_moved_by_keyboard_and_mouse_changes_the_line_of_code(page):
    code = page.locator(".jp-OutputArea code")
    assert "momentum=0.9," in code.inner_text()
    handle = page.locator(".widget-slider", has_text="momentum").locator(".noUi-handle")
    handle.focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("momentum=0.89,").wait_for(timeout=10_000)
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] - 40, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.get_by_text("momentum=0.89,").wait_for(state="detached", timeout=10_000)
    page.get_by_label("hidden sizes").fill("32, x")
    page.get_by_label("hidden sizes").press("Enter")
    page.get_by_role("alert").filter(has_text="hidden_sizes").wait_for(timeout=10_000)
    assert page.get_by_role("button", name="Start", exact=True).is_disabled()
    page.picture("refused")
    assert not page.said


@pytest.mark.slow
def test_closing_the_view_stops_the_training(page):
    empty = _shown(page)
    _press(page, "Start")
    _until_shown_other_than(page, empty)
    page.locator(".jp-CodeCell .jp-InputArea").first.click()
    page.get_by_role("menuitem", name="Edit", exact=True).click()
    page.get_by_text("Clear Cell Output", exact=True).click()
    page.keyboard.press("Escape")
    editor = page.locator(".jp-CodeCell .cm-content").first
    editor.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("playground.thread.join(20); print('alive' if playground.thread.is_alive() else 'it has ended')")
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-OutputArea-output").get_by_text("it has ended").wait_for(timeout=40_000)
    assert not page.said
