"""The configuration of Sphinx. ``make docs`` builds the pages, and any warning is an error."""

from types import FunctionType
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import safe_getattr

from girder_dask import __version__
from girder_dask.utils.public_names import defining_module

project = "girder_dask"
author = "the authors of girder_dask"
version = release = __version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 2

autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_show_class_members = False

html_theme = "alabaster"
html_theme_options = {
    "description": "The jobs of a Girder site on a Dask cluster",
    "page_width": "1240px",
    "body_max_width": "none",  # tables and commands need the room
}
html_show_sphinx = False
html_copy_source = False


def read_attribute(value: Any, name: str, *default: Any) -> Any:
    """Return an attribute of a class or function, and as its module the one that defines it.

    autodoc reads the order of members and the comments on attributes from there.
    """
    return defining_module(value) if name == "__module__" else safe_getattr(value, name, *default)


def setup(app: Sphinx) -> None:
    """Register it with autodoc."""
    for kind in (type, FunctionType):
        app.add_autodoc_attrgetter(kind, read_attribute)
