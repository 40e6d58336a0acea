"""The course in a real JupyterLab in a real Chromium: what a reader's hands and eyes would find."""

import io
import json
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
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
PLAYGROUND = """import nnlib
from nnlib import widgets
data = nnlib.load_dataset("standin", n_train=3000, n_valid=300, n_test=100)
playground = widgets.training_playground(data)
playground.controls["epochs"].value = 10_000
playground"""
TOKEN = "of-this-test"
OTHERS = "Could not restore the debugger state"  # JupyterLab's, where a kernel is restarted soon after its start
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"}
}  # all cells are in the page, seen or not
SETTINGS["apputils-extension/notification"] = {"fetchNews": "false"}  # nor is anybody asked
SETTINGS["apputils-extension/themes"] = {"theme": os.environ.get("NNLIB_THEME", "JupyterLab Light")}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start JupyterLab, with settings of its own, on copies of the notebooks; return its address."""
    pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: no test in a browser"
    )
    _chromium()
    folder = tmp_path_factory.mktemp("lab")
    _copy_notebooks(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR")
    env = (
        os.environ
        | {f"JUPYTER_{name}": str(folder / name) for name in own}
        | {"IPYTHONDIR": str(folder / "ipython")}
    )
    env |= {f"JUPYTERLAB_{name}_DIR": str(folder / name) for name in ("SETTINGS", "WORKSPACES")}
    env |= {
        "NNLIB_FIGURES_DIR": str(folder / "figures"),
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",
    }
    options = [
        f"--notebook-dir={folder}",
        f"--port={port}",
        f"--IdentityProvider.token={TOKEN}",
        "--allow-root",
    ]
    options += ["--no-browser", "--LabApp.news_url=None"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = (folder / "log.txt").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", *options],
        env=env,
        cwd=folder,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api?token={TOKEN}", folder / "log.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def _chromium() -> str | None:
    """Where a Chromium is; None for the one that `playwright install` has fetched. Skips where there is none."""
    from playwright.sync_api import sync_playwright

    found = next(
        filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
    )
    with sync_playwright() as driver:
        if not found and not Path(driver.chromium.executable_path).exists():
            pytest.skip(
                "no Chromium on this machine: no test in a browser (make browser-test fetches one)"
            )
    return found


def _copy_notebooks(folder: Path) -> None:
    """Copy the notebooks, without outputs and set to small data, and beside them what they read."""
    (folder / "notebooks").mkdir()
    (folder / "data").symlink_to(ROOT / "data")
    shutil.copy(ROOT / "notebooks/exercises.py", folder / "notebooks")
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.update(outputs=[], execution_count=None)
            if "parameters" in cell.metadata.get("tags", ()):
                cell.source += '\ndataset, quick = "standin", True'
        nbformat.write(notebook, folder / f"notebooks/{name}.ipynb")
    small = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PLAYGROUND)])
    small.metadata.kernelspec = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(small, folder / "notebooks/playground.ipynb")
    for name, values in SETTINGS.items():
        path = folder / f"SETTINGS/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


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
    """A page of Chromium; ``page.said`` collects the console's errors. Its kernels end with it."""
    from playwright.sync_api import sync_playwright

    executable = _chromium()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.said = []
        page.on(
            "console",
            lambda m: (
                page.said.append(m.text) if m.type == "error" and OTHERS not in m.text else None
            ),
        )
        page.on("pageerror", lambda error: page.said.append(str(error)))
        folder = os.environ.get("NNLIB_SCREENSHOTS")
        page.picture = lambda name: (
            folder and page.screenshot(path=str(Path(folder) / f"{name}.png"))
        )
        yield page
        browser.close()
    with urllib.request.urlopen(f"{lab}/api/sessions?token={TOKEN}") as answer:
        for session in json.load(answer):
            address = f"{lab}/api/sessions/{session['id']}?token={TOKEN}"
            urllib.request.urlopen(urllib.request.Request(address, method="DELETE")).close()


def _run_all(page, lab: str, name: str) -> None:
    """Open a notebook, and restart its kernel and run all cells, by the menu, as a reader would."""
    page.goto(
        f"{lab}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?reset&token={TOKEN}"
    )  # no tabs of others
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells…", exact=True).click()
    page.locator(".jp-Dialog .jp-mod-accept").click()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_and_its_widgets_answer(page, lab, name):
    _run_all(page, lab, name)
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    end = page.locator(".jp-OutputArea-output").get_by_text("this notebook took")
    end.or_(errors).first.wait_for(timeout=240_000)
    assert not errors.count(), errors.first.inner_text()[-1500:]
    panels = page.locator(".jp-OutputArea-output img.widget-image")
    assert panels.count(), "no widget is in the page"
    for i in range(panels.count()):
        panels.nth(i).scroll_into_view_if_needed()
        page.wait_for_function(
            "image => image.naturalWidth > 100", arg=panels.nth(i).element_handle()
        )
    page.picture(name)
    PLAY.get(name[:2], lambda page: None)(page)
    assert not page.said


def _widget(page, control: str):
    """The first widget that has a control of this description, and its first picture."""
    box = page.locator(".widget-vbox").filter(has=page.get_by_text(control, exact=True)).first
    return box, box.locator("img.widget-image").first


def _changes(picture, action) -> None:
    """Do something, and wait until another picture stands there: each has an address of its own."""
    before = picture.get_attribute("src")
    action()
    script = "([image, old]) => image.src != old && image.naturalWidth > 100"
    picture.page.wait_for_function(script, arg=[picture.element_handle(), before], timeout=20_000)


def _drag(page, handle, pixels: int) -> None:
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=5)
    page.mouse.up()


def _choose(page, box, file: dict) -> None:
    with page.expect_file_chooser() as chooser:
        box.get_by_role("button", name="Upload an image").click()
    chooser.value.set_files(file)


def _paint_and_upload(page) -> None:
    box, picture = _widget(page, "color")
    square = box.locator('button[title="row 2, column 2"]')
    _changes(picture, square.click)
    square.focus()
    page.keyboard.press("Tab")  # to the next square
    _changes(picture, lambda: page.keyboard.press("Space"))
    _changes(picture, box.get_by_role("button", name="Fill all").click)
    out = io.BytesIO()
    Image.linear_gradient("L").save(out, "PNG")
    _changes(
        picture,
        lambda: _choose(page, box, {"name": "grey.png", "mimeType": "", "buffer": out.getvalue()}),
    )
    _choose(page, box, {"name": "cat.txt", "mimeType": "text/plain", "buffer": b"miaow"})
    box.get_by_role("alert").filter(has_text="cat.txt: this can't be read").wait_for(timeout=10_000)
    page.picture("draw")


def _play_in_the_plane(page) -> None:
    box, picture = _widget(page, "layer 1")
    handle = box.locator(".widget-slider", has_text="step").locator(".noUi-handle")
    handle.focus()
    _changes(picture, lambda: page.keyboard.press("ArrowLeft"))
    _changes(picture, lambda: _drag(page, handle, -60))
    _changes(picture, box.locator(".jupyter-button[title=Play], .widget-play button").first.click)
    _changes(picture, lambda: None)  # the film goes on
    box.locator(".widget-play button").first.click()
    _changes(picture, lambda: box.get_by_label("points").select_option("XOR"))
    page.picture("plane")


def _move_the_learning_rate(page) -> None:
    box, picture = _widget(page, "learning rate")
    handle = box.locator(".widget-slider", has_text="learning rate").locator(".noUi-handle")
    _changes(picture, lambda: _drag(page, handle, 40))
    handle.focus()
    _changes(picture, lambda: page.keyboard.press("ArrowRight"))
    page.picture("learning_rate")


PLAY = {"00": _paint_and_upload, "02": _play_in_the_plane, "03": _move_the_learning_rate}


@pytest.fixture
def playground(page, lab):
    """The page with nothing but a playground of many epochs, which is ready to start."""
    _run_all(page, lab, "playground")
    page.get_by_role("button", name="Start", exact=True).wait_for(timeout=60_000)
    return page.locator(".jp-OutputArea-output img.widget-image").first


def _press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def test_playground_starts_pauses_and_stops(page, playground):
    _changes(playground, lambda: _press(page, "Start"))
    _changes(playground, lambda: None)
    page.picture("playground")
    _press(page, "Pause")
    page.get_by_role("button", name="Resume", exact=True).wait_for()
    page.wait_for_timeout(1500)  # what was under way when the click came
    standing = playground.get_attribute("src")
    page.wait_for_timeout(1500)
    assert playground.get_attribute("src") == standing
    _changes(playground, lambda: _press(page, "Resume"))
    _press(page, "Stop")
    page.get_by_text("steps, stopped").wait_for(timeout=20_000)
    _changes(playground, lambda: _press(page, "Reset"))
    assert not page.said


def test_a_slider_moved_by_keyboard_and_mouse_changes_the_line_of_code(page, playground):
    code = page.locator(".jp-OutputArea code")
    assert "momentum" not in code.inner_text()  # 0.9 is the default
    handle = page.locator(".widget-slider", has_text="momentum").locator(".noUi-handle")
    handle.focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("momentum=0.89,").wait_for(timeout=10_000)
    _drag(page, handle, -40)
    page.get_by_text("momentum=0.89,").wait_for(state="detached", timeout=10_000)
    code.click()  # selects the whole line, to be copied
    assert page.evaluate("getSelection().toString()") == code.inner_text()
    page.get_by_label("hidden sizes").fill("32, x")
    page.get_by_label("hidden sizes").press("Enter")
    page.get_by_role("alert").filter(has_text="hidden_sizes").wait_for(timeout=10_000)
    assert page.get_by_role("button", name="Start", exact=True).is_disabled()
    page.picture("refused")
    assert not page.said


def test_closing_the_view_stops_the_training(page, playground):
    _changes(playground, lambda: _press(page, "Start"))
    page.locator(".jp-CodeCell .jp-InputArea").first.click()
    page.get_by_role("menuitem", name="Edit", exact=True).click()
    page.get_by_text("Clear Cell Output", exact=True).click()
    page.keyboard.press("Escape")
    editor = page.locator(".jp-CodeCell .cm-content").first
    editor.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(
        "playground.thread.join(20); print('alive' if playground.thread.is_alive() else 'it has ended')"
    )
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-OutputArea-output").get_by_text("it has ended").wait_for(timeout=40_000)
    assert not page.said
