"""The report: notebooks are executed, merged and rendered as a page that loads nothing else."""

import re
import shutil
import signal
import subprocess
import sys
import time
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import nnlib
from nnlib.errors import NNLibError
from nnlib.report import export as report
from nnlib.report import notebooks
from nnlib.report.notebooks import Page

PIXEL = (  # a picture of one dot
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

INTRODUCTION = r"""# Softmax & friends

Inline $\sigma(x) = \frac{1}{1 + e^{-x}}$, and a block:

$$
\begin{aligned}
z &= W x + b \\
L &= -\ln p_y + \tfrac12 \lambda \lVert W \rVert^2
\end{aligned}
$$

See [the second notebook](02_fails.ipynb#Try-it), [one that is not here](09_absent.ipynb)
and [below](#Try-it).

## Try it
"""


def write_notebook(path: Path, *cells: nbformat.NotebookNode) -> Path:
    parameters = new_code_cell('dataset = "auto"\nquick = False', metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cells[0], parameters, *cells[1:]]), path)
    return path


def picture(alt: str) -> nbformat.NotebookNode:
    data = {"image/png": PIXEL, "text/plain": "<Figure>"}
    return new_output("display_data", data=data, metadata={"image/png": {"alt": alt}})


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """Two small notebooks: one that runs, one that fails in its second code cell."""
    folder = tmp_path / "course"
    folder.mkdir()
    # The widget's words are cut in two, so that only its output could put them on the page.
    show = f"""import os
from IPython.display import display
print(dataset, quick, os.environ['TQDM_DISABLE'], os.environ['NNLIB_FIGURES_DIR'], os.getcwd())
view = 'application/vnd.jupyter.wid' 'get-view+json'
display({{view: {{'model_id': '0'}}, 'text/plain': 'Sli' 'der'}}, raw=True)
display({{'image/png': '{PIXEL}'}}, raw=True, metadata={{'image/png': {{'alt': 'loss falls'}}}})"""
    cells = [new_markdown_cell(INTRODUCTION), new_code_cell(show), new_code_cell("1 + 1")]
    write_notebook(folder / "01_runs.ipynb", *cells)
    fails = new_markdown_cell("# The one that fails\n\n## Try it\n")
    error = new_code_cell('raise ValueError("no such luck")')
    write_notebook(folder / "02_fails.ipynb", fails, error, new_code_cell("2"))
    return folder


class Collector(HTMLParser):
    """Collects ids, links within the page, addresses that a browser would load, and captions."""

    def __init__(self, html: str):
        super().__init__()
        self.ids: list[str] = []
        self.inside: list[str] = []
        self.outside: list[str] = []
        self.alts: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"] or "")
        if tag == "img":
            self.alts.append(given.get("alt"))
        for address in (given.get("src"), given.get("href"), given.get("srcset")):
            if address and address.startswith("#"):
                self.inside.append(address[1:])
            elif address and not address.startswith("data:") and tag != "a":
                self.outside.append(address)


def page_of(*cells: nbformat.NotebookNode, name: str = "01_page", error: str | None = None) -> Page:
    return Page(name, new_notebook(cells=list(cells)), 1.0, error)


def render(pages: list[Page], facts: dict[str, str], code: str = "fold") -> str:
    return report.export(report.merge(pages, facts, code))


def test_report_end_to_end(course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    before = {path: path.read_bytes() for path in course.iterdir()}
    data = nnlib.load_dataset("standin", n_train=20, n_valid=10, n_test=10)
    monkeypatch.setattr(nnlib, "load_dataset", lambda name: data)
    words = r"1 of 2 .*02_fails, cell 2: ValueError: no such luck"
    with pytest.raises(report.ReportError, match=words):
        report.build(tmp_path / "out", quick=True, author="A. <Student>", notebooks_dir=course)
    assert {path: path.read_bytes() for path in course.iterdir()} == before

    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    found = Collector(html)
    note = escape(data.note.replace("`", "").strip(" ."))
    for words in ("A. &lt;Student&gt;", data.fingerprint, note, "Python 3."):
        assert words and words in html
    assert f"standin True 1 {tmp_path / 'out' / 'figures'} {course}" in html
    assert "failed in cell 2: ValueError: no such luck" in html
    assert found.alts == ["loss falls"] and "Figure 1.1." in html
    assert "Slider" not in html and "widget" not in html
    assert len(found.ids) == len(set(found.ids))
    assert {"01_runs", "02_fails", "01_runs--Try-it", "02_fails--Try-it"} <= set(found.ids)
    assert set(found.inside) <= set(found.ids)
    assert "09_absent.ipynb" not in html and "02_fails--Try-it" in found.inside
    said = capsys.readouterr().out
    assert re.search(r"\[1/2\] 01_runs: \d+ s", said) and "[2/2] 02_fails: failed in cell 2" in said


def test_page_asks_for_nothing_outside_itself():
    cell = new_code_cell("x", outputs=[picture("a dot"), new_output("stream", text="hello")])
    html = render([page_of(new_markdown_cell(INTRODUCTION), cell)], {"Data": "standin"})
    assert Collector(html).outside == []
    assert not re.search(r"url\((?!data:)|@import|https?://(?!www\.w3\.org/)", html)
    assert "MathJax" not in html and "require" not in html


@pytest.mark.parametrize(
    ("code", "blocks", "opened"), [("fold", 1, 0), ("show", 1, 1), ("hide", 0, 0)]
)
def test_code_can_be_folded_shown_or_hidden(code: str, blocks: int, opened: int):
    html = render([page_of(new_markdown_cell("# T"), new_code_cell("answer = 42"))], {}, code)
    assert html.count('<details class="code"') == blocks
    assert len(re.findall(r'<details class="code" open', html)) == opened
    assert ("42" in html) == (code != "hide")


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\frac{a}{b}", "<mfrac>"),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"),
        (r"\begin{cases} 0 & x < 0 \\ x & x \ge 0 \end{cases}", "<mtable"),
        (r"x \sim \mathcal{N}(0, 1)", "&#x0223C;"),
        (r"\frac{", "<code>"),
        (r"a < \frac{", "<code>a &lt;"),
    ],
)
def test_mathematics_becomes_mathml(latex: str, expected: str):
    assert expected in report.mathml(latex)


MATHEMATICS = re.compile(r"\$\$(.+?)\$\$|(?<!\$)\$([^$\n]+)\$(?!\$)", re.S)


def test_the_mathematics_of_the_committed_notebooks_can_be_converted(root: Path):
    for path in root.glob("notebooks/*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for latex in MATHEMATICS.findall(cell.source):
                    html = report.mathml("".join(latex))
                    assert html.startswith("<math"), latex
                    assert "<mi>\\" not in html and "<mi>&<" not in html, latex


def test_latex_output_and_headings_twice():
    latex = new_output("display_data", data={"text/latex": r"$\displaystyle \frac{1}{2}$"})
    headings = [new_markdown_cell("## Same"), new_markdown_cell("## Same")]
    html = render([page_of(*headings, new_code_cell("x", outputs=[latex]))], {})
    ids = Collector(html).ids
    assert "<mfrac>" in html and len(ids) == len(set(ids))


def test_pandas_styles_are_left_out():
    style = "<style scoped>\n  .dataframe {}\n</style>"
    table = f"<div>\n{style}\n<table class='dataframe'></table></div>"
    cell = new_code_cell("t", outputs=[new_output("display_data", data={"text/html": table})])
    html = render([page_of(cell)], {})
    assert "scoped" not in html
    assert '<table class="dataframe">' in html  # nbconvert writes the attributes anew


def test_title_page_repeats_what_was_measured():
    measured = "test accuracy 0.5 ± 0.1\nbest  test loss 1.2\n"
    text = f"loss falls\n{measured}the test accuracy is fine\n"
    printed = new_output("stream", text=text)
    page = page_of(new_markdown_cell("# T"), new_code_cell("x", outputs=[printed]))
    html = render([page], {"Author": None, "Data": "standin"})
    results = html.split('<table class="results">')[1].split("</table>")[0]
    assert "test accuracy 0.5 ± 0.1" in results and "best  test loss 1.2" in results
    assert "loss falls" not in results and "is fine" not in results
    assert "Author" not in html  # nobody is named
    # A single notebook has no title page.
    assert '<table class="results">' not in render([page], {})


@pytest.mark.parametrize(
    ("name", "number"), [("07_page", "7.1"), ("00_page", "0.1"), ("page", "2.1")]
)
def test_figures_bear_the_number_of_their_notebook(name: str, number: str):
    first = page_of(new_code_cell("x", outputs=[picture("a dot")]), name="01_page")
    second = page_of(new_code_cell("x", outputs=[picture("a dot")]), name=name)
    html = render([first, second], {"Data": "standin; `nnlib data fetch`"})
    assert "standin; nnlib data fetch<" in html  # no backticks where there is no Markdown
    assert "Figure 1.1." in html and f"Figure {number}." in html


def test_a_place_that_cannot_be_written_is_found_before_the_notebooks_run(
    course: Path, tmp_path: Path
):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        report.build(tmp_path / "file", dataset="standin", notebooks_dir=course)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signal to one process")
@pytest.mark.parametrize("before", [0, 1])
def test_ctrl_c_ends_the_report_in_one_line_and_keeps_what_has_run(tmp_path: Path, before: int):
    if before:
        write_notebook(tmp_path / "01_runs.ipynb", new_markdown_cell("# R"), new_code_cell("6 * 7"))
    waits = "open('begun', 'w').close(); import time; time.sleep(99)"
    write_notebook(tmp_path / "02_waits.ipynb", new_markdown_cell("# W"), new_code_cell(waits))
    follows = new_code_cell("open('next', 'w')")
    write_notebook(tmp_path / "03_next.ipynb", new_markdown_cell("# N"), follows)
    command = [sys.executable, "-m", "nnlib", "report", "--data", "standin"]
    command += ["--notebooks-dir", str(tmp_path)]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as running:
        while not (tmp_path / "begun").exists() and running.poll() is None:
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    page = tmp_path / "report/index.html"
    assert running.returncode == 130
    assert not (tmp_path / "next").exists()
    assert err.count("\n") == 1
    if before:
        assert err.endswith("interrupted after 1 of 3 notebooks\n")
        assert "interrupted after 1 of 3 notebooks" in page.read_text("utf-8")
    else:
        assert err == "nnlib: interrupted\n"
        assert not page.exists()


def test_what_is_no_notebook_is_named(tmp_path: Path):
    (tmp_path / "01_empty.ipynb").touch()
    with pytest.raises(NNLibError, match=r"01_empty\.ipynb: this is no notebook"):
        notebooks.execute(tmp_path / "01_empty.ipynb")


def test_pdf_without_a_browser_says_what_to_install(
    course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("playwright.sync_api")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "none"))
    with pytest.raises(report.ReportError, match="install Chromium"):
        report.build(tmp_path / "out", notebooks_dir=course, to="pdf")
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(report.ReportError, match="pip install playwright"):
        report.build(tmp_path / "out", notebooks_dir=course, to="pdf")
    assert not (tmp_path / "out").exists()  # said before anything was run


def test_nbconvert_by_hand(course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The template is found where a wheel puts it; plain nbconvert works as well."""
    template = Path(report.__file__).parent / "templates" / "nnlib"
    shutil.copytree(template, tmp_path / "nbconvert" / "templates" / "nnlib")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    command = [sys.executable, "-m", "jupyter", "nbconvert", str(course / "01_runs.ipynb")]
    command += [f"--output-dir={tmp_path}", "--to", "html"]
    subprocess.run([*command, "--template", "nnlib"], check=True, capture_output=True)
    html = (tmp_path / "01_runs.html").read_text(encoding="utf-8")
    found = Collector(html)
    assert found.outside == [] and "<mfrac>" in html and '<details class="code">' in html
    assert html.count("<h1") == 2 and "01_runs--Try-it" in found.inside
    # nbconvert's own template, as everybody types it.
    subprocess.run(command, check=True, capture_output=True)
    assert "Softmax" in (tmp_path / "01_runs.html").read_text(encoding="utf-8")


def test_error_is_marked_in_the_table_and_on_the_page():
    page = page_of(new_markdown_cell("# T"), error="cell 3: KeyError: <x>")
    html = render([page], {"Data": "standin"})
    assert html.count("failed in cell 3: KeyError: &lt;x&gt;") == 2


def test_notebooks_are_chosen_by_number_or_name(course: Path):
    names = [path.stem for path in notebooks.find_notebooks(course)]
    assert names == ["01_runs", "02_fails"]
    for name in ("2", "02", "02_fails", "02_fails.ipynb"):
        assert [path.stem for path in notebooks.find_notebooks(course, [name])] == ["02_fails"]
    with pytest.raises(NNLibError, match=r"notebook '07' .* there are 01_runs, 02_fails"):
        notebooks.find_notebooks(course, ["07"])


def test_missing_folder_says_what_to_do(tmp_path: Path):
    with pytest.raises(NNLibError, match="notebooks_dir"):
        report.build(tmp_path / "out", notebooks_dir=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_options_are_checked(course: Path):
    with pytest.raises(NNLibError, match="code: 'blink'"):
        report.build(code="blink", notebooks_dir=course)
    with pytest.raises(NNLibError, match="to: 'markdown' is not known"):
        report.build(to="markdown", notebooks_dir=course)


def test_refresh_writes_clean_outputs_that_do_not_change(
    course: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NNLIB_FIGURES_DIR", "figures")
    path = course / "01_runs.ipynb"
    notebooks.refresh(["01"], course)
    first = path.read_bytes()
    notebooks.refresh(["01"], course)
    assert path.read_bytes() == first

    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3]
    assert code[2].outputs[0].execution_count == 3
    assert [output.output_type for output in code[1].outputs] == ["stream", "display_data"]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(not cell.metadata for cell in code[1:])


def test_refresh_leaves_a_notebook_that_fails_as_it_was(course: Path):
    before = (course / "02_fails.ipynb").read_bytes()
    with pytest.raises(NNLibError, match="02_fails, cell 2: ValueError"):
        notebooks.refresh(["02"], course)
    assert (course / "02_fails.ipynb").read_bytes() == before


def test_injected_parameters_stand_in_the_result_and_not_in_the_file(
    course: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NNLIB_FIGURES_DIR", "figures")
    parameters = {"dataset": "standin", "quick": True, "recipe": "fast"}
    page = notebooks.execute(course / "01_runs.ipynb", parameters)
    assert "recipe" not in str(page.notebook)  # the cell names no such parameter
    assert page.notebook.cells[1].source.endswith("\ndataset = 'standin'\nquick = True")
    assert "standin" not in (course / "01_runs.ipynb").read_text(encoding="utf-8")
    assert page.error is None and page.title == "Softmax & friends"
    code = [cell for cell in page.notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3]
    assert code[1].outputs[0].text.startswith("standin True 1 figures")


@pytest.mark.slow
def test_report_in_a_browser_makes_no_request(tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api")
    browser_path = report._browser()
    if not browser_path:
        pytest.skip("no Chromium on this machine")
    target = tmp_path / "index.html"
    cell = new_code_cell("answer = 42", outputs=[picture("a dot")])
    html = render([page_of(new_markdown_cell(INTRODUCTION), cell)], {})
    target.write_text(html, encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(target.as_uri())
        code = page.locator("details.code pre")
        assert not code.is_visible()
        page.get_by_text("Show all code").click()
        assert code.is_visible() and code.inner_text().strip() == "answer = 42"
        assert page.locator("math").count() == 2
        # Two lines, one below the other.
        assert page.locator("math mtable").bounding_box()["height"] > 40
        browser.close()
    printed = report.pdf(target.as_uri())
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") >= 1
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and said == []
