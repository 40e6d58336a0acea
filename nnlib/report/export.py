"""The report: the notebooks, executed and merged into one HTML page that loads nothing else.

The template beside this file lays it out, and ``Typesetting`` prepares a notebook for it. Both also
work for a single notebook:
``jupyter nbconvert --to html --template nnlib notebooks/03_training.ipynb``.
"""

import os
import platform
import re
import shutil
from collections.abc import Iterable
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from nbconvert import HTMLExporter, preprocessors
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode, from_dict, v4

import nnlib
from nnlib.data.dataset import Dataset
from nnlib.errors import one_of
from nnlib.files import AnyPath, user_path, write_bytes, write_text
from nnlib.report.notebooks import Page, ReportError, execute, find_notebooks
from nnlib.training.hyperparameters import Hyperparameters

# Lines that notebooks print and the title page repeats: what was measured in this very run.
TEST = r"(?:\w+ +)?test (?:loss|accuracy)(?= \d)"  # the name of a network may stand before it
MEASURES = rf"{TEST}|best validation accuracy|(?:largest|worst) relative error|a step takes"
RESULT = re.compile(rf"^(?:{MEASURES})\b.*$", re.M)

# LaTeX that latex2mathml doesn't know, and what it knows instead.
SYNONYMS = {
    r"{aligned}": r"{split}",
    r"{gathered}": r"{split}",
    r"{gather}": r"{split}",
    r"{align}": r"{align*}",
}
# MathML that comes out wrong: bars that grow with their row, and a tilde taken for a letter.
SIGNS = {
    "<mo>&#x02016;": '<mo stretchy="false">&#x02016;',
    "<mo>&#x0007C;": '<mo stretchy="false">&#x0007C;',
    "<mo>|": '<mo stretchy="false">|',
    "<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>",
}
# A function's name gets a thin space after it, unless it has an index or a parenthesis follows.
FUNCTION = re.compile(r"(?<!<msub>)(?<!<msup>)(?<!<munder>)(<mi>[a-z]{2,}</mi>)(?!<mo|</)")

BROWSERS = ("chromium", "google-chrome", "chromium-browser", "msedge")


def build(
    output: AnyPath = "report",
    notebooks: Iterable[str] | None = None,
    dataset: str = "auto",
    quick: bool = False,
    author: str | None = None,
    code: str = "fold",
    notebooks_dir: AnyPath | None = None,
    recipe: str | None = None,
    to: str = "html",
) -> Path:
    """Execute the notebooks, write the report and return its file; the notebooks don't change.

    ``notebooks`` chooses by number or name; ``code`` is "fold", "hide" or "show"; ``recipe`` goes
    to the notebooks that have such a parameter. ``to`` is "html" (``output/index.html``) or "pdf"
    (``output/report.pdf`` as well, printed from that page).

    A notebook that fails is marked in the report, and ReportError is raised when the report is
    written. ReportError is raised at once if no report can be made. Ctrl-C keeps the notebooks that
    have run, and raises KeyboardInterrupt when the report is written.
    """
    one_of(("fold", "hide", "show"), "code", code)
    one_of(("html", "pdf"), "to", to)
    paths = find_notebooks(notebooks_dir, notebooks)
    output = user_path(output)
    if to == "pdf":
        pdf("about:blank")  # says now what is missing, not after the notebooks have run
    data = nnlib.load_dataset(dataset)
    figures = output / "figures"
    figures.mkdir(parents=True, exist_ok=True)  # fails now if it can't be made
    parameters: dict[str, Any] = {
        # The data set by name: notebooks must not try a download that has just failed.
        "dataset": "cifar10" if data.source.startswith("cifar10") else "standin",
        "quick": quick,
    }
    if recipe:
        parameters["recipe"] = one_of(Hyperparameters.recipes(), "recipe", recipe)
    pages = _run_all(paths, parameters, {"NNLIB_FIGURES_DIR": str(figures.resolve())})
    missing = ""
    if len(pages) < len(paths):
        missing = f"interrupted after {len(pages)} of {len(paths)} notebooks"
    facts = {
        "Author": author,
        "Recipe asked for": recipe,
        **_facts(pages, quick, data),
        "Incomplete": missing,
    }
    target = _write(merge(pages, facts, code), output, to)
    if missing:
        raise KeyboardInterrupt(f"{target}: {missing}")
    failed = [f"{page.name}, {page.error}" for page in pages if page.error]
    if failed:
        count = f"{len(failed)} of {len(pages)} notebooks failed"
        raise ReportError(f"{target}: {count}: {'; '.join(failed)}.")
    return target


def _run_all(paths: list[Path], parameters: dict[str, Any], env: dict[str, str]) -> list[Page]:
    """Execute the notebooks, and return the pages; Ctrl-C ends it after the first, with fewer."""
    pages: list[Page] = []
    for number, path in enumerate(paths, start=1):
        label = f"[{number}/{len(paths)}] {path.stem}"
        try:
            page = execute(path, parameters, env, label)
        except KeyboardInterrupt:
            if not pages:  # there is nothing to report
                raise
            return pages
        pages.append(page)
        result = f"failed in {page.error}" if page.error else f"{page.seconds:.0f} s"
        print(f"{label}: {result}", flush=True)
    return pages


def _facts(pages: list[Page], quick: bool, data: Dataset) -> dict[str, Any]:
    """Return what the title page's table says of this run."""
    minutes = sum(page.seconds for page in pages) / 60
    run_time = f"{minutes:.1f} minutes, {len(pages)} notebooks"
    if quick:
        run_time += " at quick settings: the numbers are those of a short run"
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "matplotlib"))
    software = f"nnlib {nnlib.__version__}, Python {platform.python_version()}, {packages}"
    return {
        "Date": f"{datetime.now().astimezone():%d %B %Y, %H:%M %Z}",
        "Run time": run_time,
        "Data": f"{data.source}. {data.note}".strip(" ."),
        "Fingerprint": data.fingerprint,
        "Software": software,
        "Machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }


def merge(pages: list[Page], facts: dict[str, Any], code: str = "fold") -> NotebookNode:
    """Return one notebook with the cells of all ``pages``.

    Its metadata has what the template reads: ``facts`` for the title page, the pages' names, titles
    and results, and how ``code`` is shown.
    """
    cells: list[NotebookNode] = []
    entries = []
    for number, page in enumerate(pages):
        cells += _numbered(page, number)
        entry = {
            "name": page.name,
            "title": page.title,
            "seconds": page.seconds,
            "error": page.error,
            "results": RESULT.findall(page.printed()),
        }
        entries.append(entry)
    merged = v4.new_notebook(cells=cells)
    merged.metadata = from_dict(
        {"facts": facts, "pages": entries, "code": code, "language_info": {"name": "python"}}
    )
    return merged


def _write(merged: NotebookNode, output: Path, to: str) -> Path:
    page = write_text(output / "index.html", export(merged))
    if to == "html":
        return page
    return write_bytes(output / "report.pdf", pdf(page.resolve().as_uri()))


def export(merged: NotebookNode) -> str:
    """Return what ``merge`` made as an HTML page."""
    templates = Path(__file__).parent / "templates"
    exporter = HTMLExporter(template_name="nnlib", extra_template_basedirs=[str(templates)])
    html, _ = exporter.from_notebook_node(merged)
    return html


def pdf(address: str) -> bytes:
    """Return the page at ``address``, printed by Chromium.

    Raises ReportError, which says what to install, if Playwright or Chromium is missing.
    """
    remedy = (
        "pip install playwright, and install Chromium or Chrome, "
        "or let `playwright install chromium` fetch one"
    )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ReportError(f"to: pdf needs Playwright: {remedy}.") from None
    path = _browser()
    try:
        with sync_playwright() as driver, driver.chromium.launch(executable_path=path) as browser:
            page = browser.new_page()
            page.goto(address)
            return page.pdf(prefer_css_page_size=True, print_background=True, outline=True)
    except Exception as error:  # Playwright's own, or a plain one if its driver can't start
        said = str(error).strip().partition("\n")[0]
        problem = f"to: pdf needs Chromium, which did not print ({said})"
        raise ReportError(f"{problem}: {remedy}.") from None


def _browser() -> str | None:
    """Return the path of a Chromium on this machine; None lets Playwright use its own."""
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    return None


def _numbered(page: Page, number: int) -> list[NotebookNode]:
    """Write each cell's page into its metadata, and each picture's figure number and caption.

    Figures are numbered within their notebook: Figure 3.2 is the second one of notebook 03.
    """
    digits = re.match(r"\d+", page.name)
    chapter = int(digits[0]) if digits else number + 1
    figures = 0
    for index, cell in enumerate(page.notebook.cells):
        cell.id = f"{page.name}-{index}"[:64]
        cell.metadata.page = number
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data or "image/svg+xml" in data:
                figures += 1
                alt = output.metadata.get("image/png", {}).get("alt")
                caption = alt or cell.metadata.get("alt", "")
                output.metadata.figure = {"number": f"{chapter}.{figures}", "caption": caption}
    return list(page.notebook.cells)


class Typesetting(preprocessors.Preprocessor):
    """Turns text and mathematics into HTML for the template, and collects the contents list."""

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        """Return ``nb``, prepared; a single notebook becomes a report of one page."""
        if "pages" not in nb.metadata:
            nb = merge([Page(resources["metadata"]["name"], nb, 0.0)], {})
        names = [page.name for page in nb.metadata.pages]
        contents: list[list[Any]] = []
        for cell in nb.cells:
            renderer = Renderer(
                names[cell.metadata.page],
                names,
                contents,
                attachments=cell.get("attachments", {}),
            )
            markdown = MarkdownWithMath(renderer=renderer)
            if cell.cell_type == "markdown":
                cell.metadata.html = markdown.render(cell.source)
            for output in cell.get("outputs", []):
                for kind in ("text/latex", "text/markdown"):
                    if kind in output.get("data", {}):
                        output.metadata.html = markdown.render(output.data[kind])
        nb.metadata.contents = contents
        return nb, resources


def mathml(latex: str, display: str = "inline") -> str:
    """Return LaTeX as MathML, which browsers draw without a script.

    LaTeX that can't be converted is returned as code.
    """
    try:
        found = str(convert(_replace(latex, SYNONYMS), display=display))
    except Exception:  # latex2mathml raises errors of many kinds, IndexError among them
        return f"<code>{escape(latex)}</code>"
    return FUNCTION.sub(r'\1<mspace width="0.17em"></mspace>', _replace(found, SIGNS))


def _replace(text: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        text = text.replace(old, new)
    return text


class Renderer(IPythonRenderer):
    """Markdown to HTML for a page of the report.

    Mathematics becomes MathML, headings get addresses that are unique in the report, and links to
    other notebooks lead to their pages in it.
    """

    def __init__(self, page: str, pages: list[str], contents: list[list[Any]], **options: Any):
        super().__init__(escape=False, **options)
        self.page = page
        self.pages = pages
        self.contents = contents  # of the whole report: page, level, address and text of headings

    def block_math(self, body: str) -> str:
        return mathml(body.strip("$"), "block")

    multiline_math = block_math  # type: ignore[assignment]  # only the argument's name differs

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        plain = re.sub(r"<[^>]+>", "", text)
        address = f"{self.page}--" + re.sub(r"\W+", "-", plain).strip("-")
        taken = [entry[2] for entry in self.contents]
        while address in taken:
            address += "-"
        self.contents.append([self.page, level, address, text])
        return f'<h{level} id="{address}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        file, _, place = url.partition("#")
        if file.endswith(".ipynb"):
            page = Path(file).stem
            if page not in self.pages:
                return text  # a notebook that is not in this report
        elif file:
            return str(super().link(text, url, title))
        else:
            page = self.page
        address = f"#{page}--{place}" if place else f"#{page}"
        return str(super().link(text, address, title))
