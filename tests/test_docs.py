"""The documentation builds without a warning, is complete, and its code runs."""

import doctest
import json
import math
import pathlib
import re
import textwrap

import numpy as np
import pytest

import rvsm_jax

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
  page for page in DOCS.glob("**/*.md") if "_build" not in page.relative_to(DOCS).parts
)
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
BLOCK = re.compile(
  r"^ *```python\n(?P<code>.*?)^ *```$(?:\n+ *```text\n(?P<output>.*?)^ *```$)?",
  flags=re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"\d+\.?\d*(?:e-?\d+)?")


def read(page: pathlib.Path) -> str:
  return page.read_text(encoding="utf-8")


def without_numbers(text: str) -> str:
  return "".join(NUMBER.sub("#", text).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The built site, with warnings as errors and every reference checked."""
  build = pytest.importorskip("sphinx.cmd.build")
  pytest.importorskip("myst_nb")
  out = tmp_path_factory.mktemp("site")
  options = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
  options += ["--doctree-dir", str(tmp_path_factory.mktemp("doctrees"))]
  assert build.main([*options, str(DOCS), str(out)]) == 0
  return out


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
  pages = "".join(map(read, (site / "api").glob("*.html")))
  documented = set(re.findall(r'id="rvsm_jax\.(\w+)"', pages))
  assert documented >= set(rvsm_jax.__all__)


def test_every_committed_table_is_shown():
  included = {
    (page.parent / target).resolve()
    for page in PAGES
    for target in re.findall(r"^```\{include\} (.+)$", read(page), re.MULTILINE)
  }
  tables = set((ROOT / "experiments/results").resolve().glob("**/*.md"))
  assert tables
  assert included >= tables


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
  loaded = re.compile(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"')
  assert not [
    url for page in site.glob("**/*.html") for url in loaded.findall(read(page))
  ]


def test_the_notebooks_have_the_address_of_the_site():
  (address,) = re.findall(
    r'^repository = "(.*)"$', read(DOCS / "conf.py"), re.MULTILINE
  )
  assert len(NOTEBOOKS) == 4
  for notebook in NOTEBOOKS:
    assert re.findall(r'REPOSITORY = \\"(.*?)\\"', read(notebook)) == [address]


def test_the_first_page_shows_no_directives_on_github():
  assert "{" not in re.sub(r"```bibtex.*?```", "", read(DOCS / "README.md"), flags=re.S)


def test_every_picture_of_the_guide_is_shown_and_has_a_caption():
  shown = set()
  for page in [*PAGES, ROOT / "README.md"]:
    for file, after in re.findall(r"!\[[^\]]+\]\((.+?)\)\s+(\S)", read(page)):
      shown.add((page.parent / file).resolve())
      assert after == "*", (page, file)
  assert shown >= set((DOCS / "figures").resolve().glob("*.png"))


def test_choosing_has_the_thresholds_of_the_library():
  text = read(DOCS / "choosing.md")
  rows = re.findall(
    r"^\| `([^|]+?\))`[^|]*\| `([^`|]+)`[^|]*\| `([^`|]+)` \|$", text, re.M
  )
  names = vars(rvsm_jax) | {"sqrt": math.sqrt, "beta": 2.0}
  assert len(rows) == 8
  for number, (penalty, threshold, lam) in enumerate(rows):
    gamma, a = 0.3, 100.0
    if number == 3:  # transformed l1 above a / 2
      a = 0.1
    here = names | {"gamma": gamma, "a": a}
    found = float(rvsm_jax.threshold_for_step(eval(penalty, here), gamma))
    assert eval(threshold, here) == pytest.approx(found, rel=1e-4), penalty
    assert eval(lam, here | {"t": found}) == pytest.approx(2.0 * gamma, rel=1e-3)


def test_paths_says_what_was_measured():
  text = read(DOCS / "paths.md")
  table = read(ROOT / "experiments/results/paths/paths.md")
  together = re.findall(
    r"all points together \(vmap\) \|.*\| +([0-9.]+) \|$", table, re.M
  )
  low, high = sorted(together)
  assert f"`vmap` took {low} to {high} times as\nlong as the loop" in text


def test_drawings_says_what_was_measured():
  text = read(DOCS / "drawings.md")
  for name in ("plain", "changed"):
    file = ROOT / f"experiments/results/curves/small/{name}.json"
    final = json.loads(read(file))["final"]
    held_out, others = final["held_out"], final["test"]
    single = np.array(held_out["networks"])
    low, high = held_out["interval"]
    assert (
      f"| {single.mean():.0%} ({single.min():.0%} to {single.max():.0%})"
      f" | {held_out['accuracy']:.0%}, interval {low:.0%} to {high:.0%}"
      f" | {others['accuracy']:.0%} |"
    ) in text


def anchors(page: pathlib.Path) -> set[str]:
  """What GitHub and the site call the headings of a page and of what it includes."""
  text = read(page)
  for included in re.findall(r"^```\{include\} (.+)$", text, re.MULTILINE):
    text += read(page.parent / included)
  headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", one).lower().replace(" ", "-") for one in headings}


@pytest.mark.parametrize(
  "page",
  [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
  ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_somewhere_and_code_fits_the_page(page):
  for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", read(page)):
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    assert file.exists(), target
    assert not anchor or anchor in anchors(file), target
  # At 600 pixels the style sheet has room for so many columns.
  for code in re.findall(r"^ *```\w+\n(.*?)^ *```$", read(page), re.S | re.M):
    assert max(map(len, code.splitlines())) <= 88, code


def test_which_one_says_what_was_measured():
  text = " ".join(read(DOCS / "sparsify.md").split())
  tables = read(ROOT / "experiments/results/frontier/tables.md")
  digits = tables.split("## DIGITS")[1].split("## PENDIGITS")[0]
  row = re.compile(r"^\| (.+?) +\|.*\| +\**([\d.]+) ± [\d.]+\** \|$", re.MULTILINE)
  at_99 = {method: f"{float(mean):.1f}%" for method, mean in row.findall(digits)}
  assert (
    f"magnitude pruning has {at_99['magnitude pruning, one budget']} with one budget"
    f" and {at_99['magnitude pruning, per layer']} with one for each layer;"
    f" RVSM with `cardinality` has {at_99['RVSM, cardinality, one budget']}"
    f" and {at_99['RVSM, cardinality per layer']}."
  ) in text


@pytest.mark.parametrize(
  "page",
  [page for page in PAGES if BLOCK.search(read(page))],
  ids=lambda page: str(page.relative_to(DOCS)),
)
@pytest.mark.slow
def test_python_blocks_run_and_print_what_the_page_says(
  page, capsys, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  names = {"__name__": page.stem}
  for block in BLOCK.finditer(read(page)):
    code = textwrap.dedent(block["code"])
    line = read(page)[: block.start("code")].count("\n")
    if ">>>" in code:
      example = doctest.DocTestParser().get_doctest(
        code, names, page.name, str(page), line
      )
      failed, _ = doctest.DocTestRunner().run(example, clear_globs=False)
      assert not failed, capsys.readouterr().out
      names = example.globs
      continue
    exec(compile("\n" * line + code, str(page), "exec"), names)
    printed = capsys.readouterr().out
    if block["output"] is not None:
      expected = textwrap.dedent(block["output"])
      assert without_numbers(printed) == without_numbers(expected)
      # Numbers differ a little from one processor to another.
      assert [*map(float, NUMBER.findall(printed))] == pytest.approx(
        [*map(float, NUMBER.findall(expected))], rel=0.03, abs=1e-3
      ), printed
