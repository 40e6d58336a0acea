"""Every notebook runs from top to bottom: at small settings on the stand-in, and on the real images where they are."""

import pytest

from nnlib.notebooks import execute, find_notebooks

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
