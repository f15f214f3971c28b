"""How Sphinx builds the site: `make docs`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from inventories import mapping  # noqa: E402

project = "ntk_monitor"
author = "the authors of ntk_monitor"
copyright = author
release = version = ""
language = "en"
html_title = "ntk_monitor"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5f99", "color-brand-content": "#1f5f99"},
    "dark_css_variables": {"color-brand-primary": "#7ab8ea", "color-brand-content": "#7ab8ea"},
}
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "results", "images"]
nitpicky = True

# Notebooks run at every build, and one that fails ends it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
nb_execution_show_tb = True
nb_output_stderr = "remove"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
os.environ.setdefault("OMP_NUM_THREADS", "1")

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autosummary_generate = True
autosummary_imported_members = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "py:obj"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Other projects' names, from inventories that hold only those which our pages name: no network.
intersphinx_mapping = mapping(HERE / "inventories.toml", HERE / "_build" / "inventories")
# Types that signatures show and that are no part of what the package offers.
nitpick_ignore_regex = [
    ("py:class", r"ntk_monitor\..*\.(BaseMonitor|CallbackOfEither|BaseLoop|LoopMonitor)"),
    ("py:class", r"ntk_monitor\..*\.(StallDetector|Processes|Comparison|Course|Tap|Room|X)"),
    ("py:class", r"ntk_monitor\..*\.(Reader|Reporter|Descent)"),
    (
        "py:class",
        r"ntk_monitor\..*\.(TrialGradients|ParameterJacobian|TangentProducts|JacobianSampler)",
    ),
    ("py:class", r"ntk_monitor\..*\.(TrialFactor|TrialMoments|SpatialMoments)"),
    ("py:class", r"ntk_monitor\.model\..*\.(ForwardMap|State|Found|Compares)"),
    ("py:class", r"Figure"),  # imported for type checkers alone
    ("py:class", r"scipy\.sparse\.linalg\._interface\.LinearOperator"),
    ("py:obj", r"typing\.Literal\['core'"),  # a part of a type
    ("py:exc", r"MisconfigurationException"),
]
