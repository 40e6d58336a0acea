"""The notebooks, executed, merged and exported.

``from nnlib.report import export`` gives ``export.build``, which makes the report. It is not loaded
here, because nbconvert is slow to load and running a notebook does without it.
"""

from nnlib.extras import EXTRAS, need

need("report", *EXTRAS["report"])

from nnlib.report.notebooks import Page, ReportError, execute, find_notebooks, refresh

__all__ = ["Page", "ReportError", "execute", "find_notebooks", "refresh"]
