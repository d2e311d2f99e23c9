"""The configuration of Sphinx. ``make docs`` builds the pages, and any warning is an error."""

from girder_dask import __version__

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
