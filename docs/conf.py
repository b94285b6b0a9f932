"""How the site is built: `make docs`, with warnings as errors and without a network."""

from docutils import nodes
from docutils.utils.math import latex2mathml

import pescador

project = "pescador, compiled"
author = "the authors of pescador, compiled"
copyright = author
version = release = pescador.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "matplotlib.sphinxext.plot_directive",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "myst_parser",
]
root_doc = "index"
exclude_patterns = ["_build", "README.md"]
# `name` is a link where there is something to link to; in docstrings it is mostly a parameter.
# What has a role of its own, such as :class:, must be found.
default_role = "autolink"
nitpicky = True
nitpick_ignore_regex = [("py:obj", ".*")]

# The types of parameters are in their descriptions, with shapes and units.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
# Documented without being installed.
autodoc_mock_imports = ["jax", "keras", "torch"]
numpydoc_show_class_members = False
numpydoc_use_plots = False
myst_enable_extensions = ["colon_fence"]

plot_formats = [("svg", 100)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_include_source = False
plot_rcparams = {
    "svg.hashsalt": "pescador",
    "axes.prop_cycle": "cycler('color', ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00'])",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
plot_apply_rcparams = True

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "copyfile_regex": r"^$",
    "min_reported_time": 1e9,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "pescador, compiled"
html_static_path = ["_static"]
html_css_files = ["pescador.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "navbar_persistent": ["search-button"],
    "logo": {"text": "pescador"},
    "show_toc_level": 2,
    "footer_start": [],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {
    "index": [],
    "stochastic_mux": [],
    "concepts": [],
    "coming_from_pescador": [],
    "benchmarks": [],
    "changelog": [],
    "gallery/*": [],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# Formulas as MathML, which browsers read by themselves: no script from elsewhere.
html_math_renderer = "mathml"


def write_inline(writer, node):
    """Write a formula in a line."""
    writer.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def write_display(writer, node):
    """Write a formula on lines of its own."""
    formula = latex2mathml.tex2mathml(node.astext(), as_block=True)
    writer.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


def setup(app):
    """Add what the pages use beyond Sphinx."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_display, None))
