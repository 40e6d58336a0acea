"""The report: the notebooks, executed and merged into one HTML page that needs nothing outside itself."""

import os
import platform
import re
from collections.abc import Iterable
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbformat.v4 import new_notebook

import nnlib
from nnlib.checkpoints import write_text
from nnlib.errors import one_of
from nnlib.notebooks import Page, ReportError, execute, find_notebooks

TITLE = "A three-layer network for CIFAR-10, written by hand"
CODE = ("fold", "hide", "show")

# What latex2mathml does not know, in words that it knows; then what it takes for a letter, or lets grow with its row.
SYNONYMS = {r"{aligned}": r"{split}", r"{gathered}": r"{split}", r"{gather}": r"{split}", r"{align}": r"{align*}"}
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
) -> Path:
    """Execute the notebooks and write ``output/index.html``; the notebooks themselves stay as they are.

    ``notebooks`` chooses by number or name; ``code`` is "fold", "hide" or "show". A notebook that fails is marked in
    the report. Raises ReportError at the end, when the report is written, if any failed.
    """
    one_of(CODE, "code", code)
    paths, output = find_notebooks(notebooks_dir, notebooks), Path(output)
    data = nnlib.load_dataset(dataset)
    print(f"data: {data.source}", flush=True)
    # What was found once is asked for by name: no notebook tries the same download again.
    parameters = {"dataset": "cifar10" if data.source.startswith("cifar10") else "standin", "quick": quick}
    figures, pages = {"NNLIB_FIGURES_DIR": str((output / "figures").resolve())}, []
    for number, path in enumerate(paths, start=1):
        label = f"[{number}/{len(paths)}] {path.stem}"
        pages.append(page := execute(path, parameters, figures, label))
        print(f"{label}: failed in {page.error}" if page.error else f"{label}: {page.seconds:.0f} s", flush=True)
    facts = ({"Author": author} if author else {}) | _facts(pages, quick, data)
    target = write_text(output / "index.html", render(pages, facts, code))
    print(f"report: {target}")
    if failed := [f"{page.name}, {page.error}" for page in pages if page.error]:
        raise ReportError(f"{len(failed)} of {len(pages)} notebooks failed: {'; '.join(failed)}.")
    return target


def _facts(pages: list[Page], quick: bool, data: nnlib.Dataset) -> dict[str, str]:
    settings = " at quick settings: the numbers are those of a short run" if quick else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "matplotlib"))
    return {
        "Date": f"{datetime.now().astimezone():%d %B %Y, %H:%M %Z}",
        "Run time": f"{sum(page.seconds for page in pages) / 60:.1f} minutes, {len(pages)} notebooks{settings}",
        "Data": f"{data.source}. {data.note}".strip(" ."),
        "Fingerprint": data.fingerprint,
        "Software": f"nnlib {nnlib.__version__}, Python {platform.python_version()}, {packages}",
        "Machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }


def render(pages: list[Page], facts: dict[str, str], code: str = "fold") -> str:
    """Return the HTML of ``pages`` behind a title page that lists ``facts``."""
    merged = new_notebook(cells=[cell for number, page in enumerate(pages) for cell in _numbered(page, number)])
    merged.metadata = NotebookNode(title=TITLE, language_info=NotebookNode(name="python"))
    exporter = ReportExporter(pages=pages)
    exporter.environment.globals.update(title=TITLE, pages=pages, facts=facts, code=code, contents=exporter.contents)
    return str(exporter.from_notebook_node(merged)[0])


def _numbered(page: Page, number: int) -> list[NotebookNode]:
    """Tell each cell its page, and each picture its number and caption."""
    figures = 0
    for index, cell in enumerate(page.notebook.cells):
        cell.id = f"{page.name}-{index}"
        cell.metadata.page = number
        for output in cell.get("outputs", []):
            if {"image/png", "image/svg+xml"} & set(output.get("data", {})):
                figures += 1
                alt = output.metadata.get("image/png", {}).get("alt") or cell.metadata.get("alt", "")
                output.metadata.figure = {"number": f"{number + 1}.{figures}", "caption": alt}
    return list(page.notebook.cells)


def mathml(latex: str, display: str = "inline") -> str:
    """Return LaTeX as MathML, which browsers draw without a script; what cannot be read is shown as it stands."""
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
    """Markdown to HTML: mathematics as MathML, headings with addresses unique in the report, links that stay in it."""

    def __init__(self, page: str, pages: list[str], contents: list[tuple[str, int, str, str]], **options: Any):
        super().__init__(escape=False, **options)
        self.page, self.pages, self.contents = page, pages, contents

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def multiline_math(self, text: str) -> str:
        return mathml(text.strip("$"), "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        address = f"{self.page}--" + re.sub(r"\W+", "-", re.sub(r"<[^>]+>", "", text)).strip("-")
        while address in (entry[2] for entry in self.contents):
            address += "-"
        self.contents.append((self.page, level, address, text))
        return f'<h{level} id="{address}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        file, _, place = url.partition("#")
        target = Path(file).stem if file.endswith(".ipynb") else "" if file else self.page
        if target in self.pages:
            url = f"#{target}--{place}" if place else f"#{target}"
        elif target:
            return text  # a notebook that is not in this report
        return str(super().link(text, url, title))


class ReportExporter(HTMLExporter):
    """nbconvert's HTML exporter with the template beside this file; ``contents`` fills while cells are rendered."""

    def __init__(self, pages: list[Page], **options: Any):
        self.pages = [page.name for page in pages]
        self.contents: list[tuple[str, int, str, str]] = []
        folders = [str(Path(__file__).parent / "templates")]
        super().__init__(template_name="nnlib", extra_template_basedirs=folders, **options)  # type: ignore[no-untyped-call]

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        cell = context.get("cell", {})
        page = self.pages[cell.metadata.page]
        renderer = Renderer(page, self.pages, self.contents, attachments=cell.get("attachments", {}))
        return str(MarkdownWithMath(renderer=renderer).render(source))
