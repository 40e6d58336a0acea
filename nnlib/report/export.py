"""The report: the notebooks, executed and merged into one HTML page that needs nothing outside itself.

The template beside this file lays it out. ``Typesetting`` prepares a notebook for it, also for a single one by hand:
``jupyter nbconvert --to html --template nnlib notebooks/03_training.ipynb``.
"""

import os
import platform
import re
import shutil
from collections.abc import Iterable
from datetime import datetime
from functools import reduce
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from nbconvert import HTMLExporter, MarkdownExporter, preprocessors
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.writers.files import FilesWriter
from nbformat import NotebookNode, from_dict, v4

import nnlib
from nnlib.errors import one_of
from nnlib.files import write_atomically, write_text
from nnlib.report.notebooks import Page, ReportError, execute, find_notebooks
from nnlib.training.hyperparameters import Hyperparameters

# Lines that notebooks print and that the title page repeats: what was measured in this very run.
TEST = r"(?:\w+ +)?test (?:loss|accuracy)(?= \d)"  # the name of a network may stand before it
MEASURES = rf"{TEST}|best validation accuracy|(?:largest|worst) relative error|a step takes"
RESULT = re.compile(rf"^(?:{MEASURES})\b.*$", re.M)

# What latex2mathml does not know, in words that it knows; then what it takes for a letter, or lets grow with its row.
SYNONYMS = {
    r"{aligned}": r"{split}",
    r"{gathered}": r"{split}",
    r"{gather}": r"{split}",
    r"{align}": r"{align*}",
}
SIGNS = {f"<mo>{bar}": f'<mo stretchy="false">{bar}' for bar in ("&#x02016;", "&#x0007C;", "|")}
SIGNS["<mi>&#x0007E;</mi>"] = "<mo>&#x0223C;</mo>"
# A function's name that neither has an index nor stands before a parenthesis is followed by a thin space.
FUNCTION = re.compile(r"(?<!<msub>)(?<!<msup>)(?<!<munder>)(<mi>[a-z]{2,}</mi>)(?!<mo|</)")


def build(
    output: str | Path = "report",
    notebooks: Iterable[str] | None = None,
    dataset: str = "auto",
    quick: bool = False,
    author: str | None = None,
    code: str = "fold",
    notebooks_dir: str | Path | None = None,
    recipe: str | None = None,
    to: str = "html",
) -> Path:
    """Execute the notebooks, write the report and return its file; the notebooks themselves stay as they are.

    ``notebooks`` chooses by number or name; ``code`` is "fold", "hide" or "show"; ``recipe`` goes to the notebooks that
    have such a parameter. ``to`` is "html" (``output/index.html``), "pdf" (``output/report.pdf``, printed from that
    page) or "markdown" (``output/report.md``). A notebook that fails is marked in the report. Raises ReportError at the
    end, when the report is written, if any failed; at once if it cannot be made.
    """
    one_of(("fold", "hide", "show"), "code", code)
    one_of(("html", "pdf", "markdown"), "to", to)
    paths, output = find_notebooks(notebooks_dir, notebooks), Path(output)
    if to == "pdf":
        pdf("about:blank")  # what is missing is said now, not when the notebooks have run
    data = nnlib.load_dataset(dataset)
    (output / "figures").mkdir(parents=True, exist_ok=True)  # or an error, before the notebooks run
    # What was found once is asked for by name: no notebook tries the same download again.
    parameters = {
        "dataset": "cifar10" if data.source.startswith("cifar10") else "standin",
        "quick": quick,
    }
    parameters |= {"recipe": one_of(Hyperparameters.recipes(), "recipe", recipe)} if recipe else {}
    figures, pages = {"NNLIB_FIGURES_DIR": str((output / "figures").resolve())}, list[Page]()
    for number, path in enumerate(paths, start=1):
        label = f"[{number}/{len(paths)}] {path.stem}"
        try:
            pages.append(page := execute(path, parameters, figures, label))
        except KeyboardInterrupt:
            if not pages:
                raise
            break
        print(
            f"{label}: failed in {page.error}" if page.error else f"{label}: {page.seconds:.0f} s",
            flush=True,
        )
    facts = {"Author": author, "Recipe asked for": recipe} | _facts(pages, quick, data)
    lacking = (
        f"interrupted after {len(pages)} of {len(paths)} notebooks"
        if len(pages) < len(paths)
        else ""
    )
    target = _write(merge(pages, facts | {"Incomplete": lacking}, code), output, to)
    if lacking:
        raise KeyboardInterrupt(f"{target}: {lacking}")
    if failed := [f"{page.name}, {page.error}" for page in pages if page.error]:
        raise ReportError(
            f"{target}: {len(failed)} of {len(pages)} notebooks failed: {'; '.join(failed)}."
        )
    return target


def _facts(pages: list[Page], quick: bool, data: nnlib.Dataset) -> dict[str, Any]:
    settings = " at quick settings: the numbers are those of a short run" if quick else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "matplotlib"))
    took = (
        f"{sum(page.seconds for page in pages) / 60:.1f} minutes, {len(pages)} notebooks{settings}"
    )
    facts = {"Date": f"{datetime.now().astimezone():%d %B %Y, %H:%M %Z}", "Run time": took}
    facts |= {"Data": f"{data.source}. {data.note}".strip(" ."), "Fingerprint": data.fingerprint}
    facts["Software"] = f"nnlib {nnlib.__version__}, Python {platform.python_version()}, {packages}"
    return facts | {
        "Machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    }


def merge(pages: list[Page], facts: dict[str, Any], code: str = "fold") -> NotebookNode:
    """Return one notebook with the cells of all ``pages``, which knows what its title page says."""
    merged = v4.new_notebook(
        cells=[cell for number, page in enumerate(pages) for cell in _numbered(page, number)]
    )
    listed = [
        vars(p) | {"notebook": None, "title": p.title, "results": RESULT.findall(p.printed())}
        for p in pages
    ]
    merged.metadata = from_dict(
        {"facts": facts, "pages": listed, "code": code, "language_info": {"name": "python"}}
    )
    return merged


def _write(merged: NotebookNode, output: Path, to: str) -> Path:
    if to == "markdown":
        text, files = export(merged, MarkdownExporter)
        return Path(FilesWriter(build_directory=str(output)).write(text, files, "report"))
    page = write_text(output / "index.html", export(merged)[0])
    if to == "pdf":
        return write_atomically(
            output / "report.pdf", lambda file: file.write(pdf(page.resolve().as_uri()))
        )
    return page


def export(merged: NotebookNode, exporter: Any = HTMLExporter) -> tuple[str, Any]:
    """Return the text of what ``merge`` made, and the files that go with it, as nbconvert's writers want them."""
    folder, files = (
        Path(__file__).parent / "templates",
        {"output_files_dir": "report_files", "unique_key": "report"},
    )
    return exporter(
        template_name="nnlib", extra_template_basedirs=[str(folder)]
    ).from_notebook_node(merged, files)


def pdf(address: str) -> bytes:
    """Return the page at ``address``, printed by Chromium. Raises ReportError, which says what to install."""
    remedy = "pip install playwright, and install Chromium or Chrome, or let `playwright install chromium` fetch one"
    found = next(
        filter(
            None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser", "msedge"))
        ),
        None,
    )
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as driver, driver.chromium.launch(executable_path=found) as browser:
            page = browser.new_page()
            page.goto(address)
            return page.pdf(prefer_css_page_size=True, print_background=True, outline=True)
    except ImportError:
        raise ReportError(f"to: pdf needs Playwright: {remedy}.") from None
    except Exception as error:  # Playwright's own, or a plain one where its driver cannot start
        said = str(error).strip().partition("\n")[0]
        raise ReportError(
            f"to: pdf needs Chromium, which did not print ({said}): {remedy}."
        ) from None


def _numbered(page: Page, number: int) -> list[NotebookNode]:
    """Tell each cell its page, and each picture its number, after that of the notebook, and its caption."""
    figures, digits = 0, re.match(r"\d+", page.name)
    chapter = int(digits[0]) if digits else number + 1
    for index, cell in enumerate(page.notebook.cells):
        cell.id = f"{page.name}-{index}"[:64]
        cell.metadata.page = number
        for output in cell.get("outputs", []):
            if {"image/png", "image/svg+xml"} & set(output.get("data", {})):
                figures += 1
                alt = output.metadata.get("image/png", {}).get("alt") or cell.metadata.get(
                    "alt", ""
                )
                output.metadata.figure = {"number": f"{chapter}.{figures}", "caption": alt}
    return list(page.notebook.cells)


class Typesetting(preprocessors.Preprocessor):
    """Sets text and mathematics as HTML, where the template looks for it, and collects the list of contents."""

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        """Return ``nb``, prepared; a single notebook becomes a report of one page."""
        if "pages" not in nb.metadata:
            nb = merge([Page(resources["metadata"]["name"], nb, 0.0)], {})
        pages, contents = [page.name for page in nb.metadata.pages], list[list[Any]]()
        for cell in nb.cells:
            renderer = Renderer(
                pages[cell.metadata.page], pages, contents, attachments=cell.get("attachments", {})
            )
            if cell.cell_type == "markdown":
                cell.metadata.html = MarkdownWithMath(renderer=renderer).render(cell.source)
            for output in cell.get("outputs", []):
                for kind in {"text/latex", "text/markdown"} & set(output.get("data", {})):
                    output.metadata.html = MarkdownWithMath(renderer=renderer).render(
                        output.data[kind]
                    )
        nb.metadata.contents = contents
        return nb, resources


def mathml(latex: str, display: str = "inline") -> str:
    """Return LaTeX as MathML, which browsers draw without a script; what cannot be read is shown as it stands."""
    try:
        found = str(convert(_replace(latex, SYNONYMS), display=display))
    except Exception:  # latex2mathml raises errors of many kinds, IndexError among them
        return f"<code>{escape(latex)}</code>"
    return FUNCTION.sub(r'\1<mspace width="0.17em"></mspace>', _replace(found, SIGNS))


def _replace(text: str, table: dict[str, str]) -> str:
    return reduce(lambda changed, pair: changed.replace(*pair), table.items(), text)


class Renderer(IPythonRenderer):
    """Markdown to HTML: mathematics as MathML, headings with addresses unique in the report, links that stay in it."""

    def __init__(self, page: str, pages: list[str], contents: list[list[Any]], **options: Any):
        super().__init__(escape=False, **options)
        self.page, self.pages, self.contents = page, pages, contents

    def block_math(self, body: str) -> str:
        return mathml(body.strip("$"), "block")

    multiline_math = block_math  # type: ignore[assignment]  # only the name of the argument differs

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        address = f"{self.page}--" + re.sub(r"\W+", "-", re.sub(r"<[^>]+>", "", text)).strip("-")
        while address in (entry[2] for entry in self.contents):
            address += "-"
        self.contents.append([self.page, level, address, text])
        return f'<h{level} id="{address}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        file, _, place = url.partition("#")
        target = Path(file).stem if file.endswith(".ipynb") else "" if file else self.page
        if target in self.pages:
            url = f"#{target}--{place}" if place else f"#{target}"
        elif target:
            return text  # a notebook that is not in this report
        return str(super().link(text, url, title))
