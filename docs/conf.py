"""Settings of Sphinx: ``tox -e docs`` builds the pages of medadv with warnings as errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ["COLUMNS"] = "90"  # width of the commands' help texts

import medadv

project = "medadv"
author = "the medadv authors"
version = release = medadv.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]
exclude_patterns = ["_build", "extension"]

# cross-references are all checked; what other libraries define is looked up by importing it, never on a network
nitpicky = True
nitpick_ignore = [("py:class", "types.Annotated")]  # Sphinx's name for fields of pydantic that have bounds
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"medadv {release}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
