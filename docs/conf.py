"""Configuration of Sphinx; `make docs` builds the site."""

import ast
import inspect
import json
import pathlib
import re
import textwrap
import types

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

# "https://github.com/owner/rvsm_jax" once it has an address: what links to Colab are
# made from. The notebooks' first cells have the same, which tests/test_docs.py checks.
repository = ""

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.autosummary",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "jupyter_execute", "README.md"]
default_role = "code"  # what docstrings have in single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autosummary_generate = False
python_maximum_signature_line_length = 80
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # committed with their outputs
nitpick_ignore_regex = [
  ("py:.*", r"(jax|numpy|np|optax|chex|collections\.abc|os|nnx)\..*"),
  ("py:.*", r"(.*\.)?(Any|Callable|Fold|Groups|Mapping|Mask|Model|Sequence)"),
  ("py:.*", r"(Array|Axis|DType)\w*|Hashable|Iterable|Literal"),
]

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
  # Nor do all browsers leave room between a function and what it is applied to.
  maths = re.sub(
    r"(&ApplyFunction;</mo>\s*)(?!<mo[ >]|\s)", r"\1<mspace width='.17em'/>", maths
  )
  tag = "div" if block else "span"
  translator.body.append(f'<{tag} class="math notranslate">{maths}</{tag}>')
  raise nodes.SkipNode


def _as_written(app, what, name, obj, options, signature, returned):
  """The signature with the types as the source has them, not spelled out."""
  if what == "class" and hasattr(obj, "_fields"):
    (node,) = ast.parse(inspect.getsource(obj)).body
    fields = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign)]
    return re.sub(r"\b_[a-z]\w*\.", "", f"({', '.join(fields)})"), None
  if not isinstance(obj, types.FunctionType) or what == "class":
    return None
  (node,) = ast.parse(textwrap.dedent(inspect.getsource(obj))).body
  arguments, returns = (
    re.sub(r"\b_[a-z]\w*\.", "", ast.unparse(part)) if part else None
    for part in (node.args, node.returns)
  )
  return f"({arguments})", returns


def _copy_notebooks(app: Sphinx) -> None:
  """Copies `colab/` to where Sphinx finds it, with a link to Colab if there is one."""
  target = pathlib.Path(app.srcdir, "notebooks")
  target.mkdir(exist_ok=True)
  for path in sorted(pathlib.Path(app.srcdir, "../colab").glob("*.ipynb")):
    # Reports are pages of the site here.
    text = re.sub(
      r"\(\.\./experiments/results/(\w+)/\w+\.md\)",
      r"(../results/\1.md)",
      path.read_text(encoding="utf-8"),
    )
    notebook = json.loads(text)
    notebook["metadata"]["language_info"]["pygments_lexer"] = "ipython3"
    first = notebook["cells"][0]
    first["source"] = "".join(first["source"]) + "\n\n" + _run_it(path.name)
    text = json.dumps(notebook)
    copy = target / path.name
    if not copy.exists() or copy.read_text(encoding="utf-8") != text:
      copy.write_text(text, encoding="utf-8")


def _run_it(name: str) -> str:
  here = f"This page is `colab/{name}` of the repository, with the outputs of one run"
  if not repository:
    return f"*{here}: open it in Jupyter, or upload it to Colab.*"
  branch = f"{repository.removeprefix('https://github.com/')}/blob/main/colab/{name}"
  return (
    f"*{here}: [open it in Colab](https://colab.research.google.com/github/{branch}).*"
  )


def _link_notebooks(app: Sphinx, name: str, content: list[str]) -> None:
  """Leads links to notebooks to their pages."""
  if not name.startswith("notebooks/"):
    content[0] = content[0].replace("](../colab/", "](/notebooks/")


def _keep_errors(app: Sphinx, document: nodes.document) -> None:
  """Keeps the numbers of tables and their errors on one line."""
  for entry in document.findall(nodes.entry):
    for text in list(entry.findall(nodes.Text)):
      if " ± " in text:
        text.parent.replace(text, nodes.Text(text.replace(" ± ", "\u00a0±\u00a0")))


def setup(app: Sphinx) -> None:
  """Registers what is done here."""
  app.connect("builder-inited", _copy_notebooks)
  app.connect("source-read", _link_notebooks)
  app.connect("doctree-read", _keep_errors)
  app.connect("autodoc-process-signature", _as_written)
  app.add_html_math_renderer(
    "mathml",
    (lambda self, node: _write_maths(self, node, block=False), None),
    (lambda self, node: _write_maths(self, node, block=True), None),
  )
