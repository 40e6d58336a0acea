"""The notebooks, executed, merged and exported."""

from nnlib.extras import EXTRAS, need

need("report", *EXTRAS["report"])
