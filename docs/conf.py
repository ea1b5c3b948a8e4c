"""How the documentation's site is made: `make docs`, then docs/_build/html/index.html."""

from importlib import metadata

project = "MoE-CAP"
copyright = "the MoE-CAP maintainers, Apache-2.0"
release = metadata.version("moecap")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"MoE-CAP {release}"
myst_heading_anchors = 3
# Pages link to files of the repository too, which the site does not have.
suppress_warnings = ["myst.xref_missing"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
# What only engines need is not installed where the site is made.
autodoc_mock_imports = ["torch", "transformers", "safetensors", "vllm", "lm_eval", "huggingface_hub"]
napoleon_use_rtype = False
nitpicky = False
