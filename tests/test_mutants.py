"""The script that injects defects: each still is one, and it tells the killer."""

import ast

import mutants
import pytest


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_applies_and_parses(mutant):
  text = (mutants.ROOT / "rvsm_jax" / mutant.file).read_text()
  changed = ast.dump(ast.parse(mutant.applied()))
  assert changed != ast.dump(ast.parse(text))


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_the_likely_tests_exist(mutant):
  for test in mutant.tests:
    file, _, name = test.partition("::")
    text = (mutants.HERE / f"test_{file}").read_text()
    assert f"def {name}(" in text if name else text


def test_a_text_that_is_gone_or_there_twice_is_an_error():
  for old in ("no such text", "import jax"):
    with pytest.raises(LookupError, match="times"):
      mutants.Mutant("name", "_rvsm.py", old, "", ()).applied()


def test_there_are_enough_of_them_in_every_module_with_code_of_its_own():
  assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS) >= 40
  assert len({mutant.file for mutant in mutants.MUTANTS}) >= 15
