"""Configuration of Sphinx; `make docs` builds the site."""

import re

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

import rvsm_jax

project = "rvsm_jax"
author = "The rvsm_jax authors"
copyright = author
version = release = rvsm_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # what docstrings have in single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # spelled out, array-likes are six lines long
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 3
nitpick_ignore_regex = [("py:.*", r"(jax|numpy|optax|collections\.abc)\..*|ArrayTree")]

html_theme = "furo"
html_title = f"rvsm_jax {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"

# TeX that docutils does not read, and what it reads.
_TEX = ((r"\\dots", r"\\ldots"), (r"(\\t?frac)(\d)(\d)", r"\1{\2}{\3}"))
_logger = logging.getLogger(__name__)


def _write_maths(translator: HTML5Translator, node: nodes.Element, *, block: bool):
  """Writes maths as MathML, which browsers show without scripts or fonts."""
  source = node.astext()
  for pattern, replacement in _TEX:
    source = re.sub(pattern, replacement, source)
  if r"\\" in source and r"\begin" not in source:
    source = rf"\begin{{aligned}}{source}\end{{aligned}}"
  try:
    maths = latex2mathml.tex2mathml(source, as_block=block)
  except MathError as error:
    _logger.warning("%s in %r", error, source, location=node)
    maths = ""
  # Between other symbols bars would be given the space of a relation.
  maths = re.sub(
    r"<mo[^>]*>([|‖])</mo>",
    r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>',
    maths,
  )
  tag = "div" if block else "span"
  translator.body.append(f'<{tag} class="math notranslate">{maths}</{tag}>')
  raise nodes.SkipNode


def setup(app: Sphinx) -> None:
  """Registers the renderer of maths."""
  app.add_html_math_renderer(
    "mathml",
    (lambda self, node: _write_maths(self, node, block=False), None),
    (lambda self, node: _write_maths(self, node, block=True), None),
  )
