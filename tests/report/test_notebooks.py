"""Every notebook runs from top to bottom: on the stand-in, and on real images if they are here."""

import re

import nbformat
import pytest

from nnlib.report import execute, find_notebooks

NOTEBOOKS = [path.stem for path in find_notebooks()]


def _run(name: str, dataset: str, folder) -> str:
    env = {"NNLIB_FIGURES_DIR": str(folder / "figures"), "OPENBLAS_NUM_THREADS": "1"}
    page = execute(find_notebooks(chosen=[name])[0], {"dataset": dataset, "quick": True}, env)
    assert page.error is None, page.error
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures and all(stem.startswith(name[:2]) for stem in figures)
    return "".join(o.get("text", "") for c in page.notebook.cells for o in c.get("outputs", []))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_on_the_stand_in_and_says_so(name, tmp_path):
    text = _run(name, "standin", tmp_path)
    assert "stand-in" in text.lower()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_on_the_real_images(name, tmp_path, real_images, monkeypatch):
    monkeypatch.setenv("NNLIB_DATA_DIR", str(real_images))
    text = _run(name, "cifar10", tmp_path)
    assert "stand-in" not in text.lower()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_reads_as_a_chapter(name):
    cells = nbformat.read(find_notebooks(chosen=[name])[0], as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    too_long = [cell.source for cell in code if len(cell.source.splitlines()) > 24]
    assert too_long == []
    assert text.startswith(f"# {int(name[:2])} · ")
    assert "**What you will learn.**" in text and "**Next:**" in text
    checks = re.compile(r"^ *assert |raise_if_failed", re.M)
    assert any(checks.search(cell.source) for cell in code), "no check"
    questions = text.split("## Try it\n")[1].split("**Next:**")[0]
    hints = questions.count("<details><summary>Hint</summary>")
    assert len(re.findall(r"^\d\. ", questions, re.M)) <= hints
    outputs = [output for cell in code for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    assert all(picture.metadata["image/png"]["alt"] for picture in pictures)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_static_figure_stands_below_each_widget(name):
    cells = nbformat.read(find_notebooks(chosen=[name])[0], as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    shown = re.compile(r"^widgets\.|^(playground|explorer)$", re.M)  # as a line of its own
    widgets = [i for i, cell in enumerate(code) if shown.search(cell.source)]
    assert widgets and all("plots.show(" in code[i + 1].source for i in widgets)
