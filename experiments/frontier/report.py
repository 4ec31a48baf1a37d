"""A table and a picture for each task: accuracy against the share of zeros."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import numpy as np

from experiments.core import plots, results
from experiments.core.tables import table
from experiments.core.tasks import Task
from experiments.frontier.config import METHODS, TASKS, score

Found = Mapping[str, dict[str, Any]]


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes `tables.md` and a picture for each task whose results are in a folder."""
  found = {task: results.read_all(folder / task, METHODS) for task in TASKS}
  tasks = {task: methods for task, methods in found.items() if methods}
  files = [results.write_atomically(folder / "tables.md", markdown(tasks))]
  for task, found in tasks.items():
    files.append(folder / f"{task}.png")
    draw(TASKS[task].title, found, files[-1])
  return files


def _task(result: Mapping[str, Any]) -> Task:
  return TASKS[result["config"]["task"]["name"]]


def scores(result: Mapping[str, Any], share: float) -> np.ndarray:
  """What all seeds have at a share of zeros, larger for a better one."""
  task = _task(result)
  return np.array([score(task, f) for f in result["finals"] if f["share"] == share])


def _text(task: Task, mean: float, spread: float, sign: str = "") -> str:
  """A score, or a difference of scores, and its error, in the task's unit."""
  if task.in_nats:
    return f"{mean if sign else -mean:{sign}.3f} ± {spread:.3f}"
  return f"{100 * mean:{sign}.2f} ± {100 * spread:.2f}"


def error(values: Sequence[np.ndarray]) -> float:
  """The standard error of the sum or the difference of independent means."""
  return float(np.sqrt(sum(np.var(v, ddof=1) / len(v) for v in values)))


def best(found: Found, group: str, share: float) -> str | None:
  """The method of a group with the highest mean; None if there is none."""
  names = [name for name in found if METHODS[name].group == group]
  return max(names, key=lambda n: scores(found[n], share).mean(), default=None)


def markdown(tasks: Mapping[str, Found]) -> str:
  """All tables."""
  parts = [
    "# Accuracy against zeros: ours and pruning",
    "Test accuracy in per cent of the sparse network, mean ± standard error over the"
    " seeds, by the share of exact zeros in all kernels; bold: the best of a column."
    " All methods have the same network, epochs, optimizer and schedule. For each"
    " method and share, one hyperparameter was chosen from the same number of values,"
    " on validation examples and with one seed; *dense, cut once* and *sparsify* have"
    " none. A network with fewer zeros than the share was cut to it before the test."
    " For text it is the test loss in nats per character, where lower is better; a"
    " positive difference is better there, too.",
  ]
  for task, found in tasks.items():
    shares = next(iter(found.values()))["config"]["shares"]
    parts += [
      f"## {TASKS[task].title}",
      _table(found, shares),
      _comparison(found, shares),
      f"![Accuracy against zeros]({task}.png)",
      _protocol(found),
    ]
  return "\n\n".join(parts) + "\n"


def _table(found: Found, shares: Sequence[float]) -> str:
  top = {s: max(scores(r, s).mean() for r in found.values()) for s in shares}
  rows = []
  for name, result in found.items():
    cells = []
    for share in shares:
      values = scores(result, share)
      text = _text(_task(result), values.mean(), error([values]))
      cells.append(f"**{text}**" if values.mean() == top[share] else text)
    rows.append([METHODS[name].title, *cells])
  return table(["method", *(f"{share:.0%}" for share in shares)], rows)


def _comparison(found: Found, shares: Sequence[float]) -> str:
  rows = []
  for share in shares:
    ours, pruning = (best(found, group, share) for group in ("ours", "pruning"))
    if ours is None or pruning is None:
      return ""
    pair = [scores(found[name], share) for name in (ours, pruning)]
    difference, spread = pair[0].mean() - pair[1].mean(), error(pair)
    verdict = "equal within one standard error"
    if abs(difference) > spread:
      verdict = "ours" if difference > 0 else "pruning"
    rows.append(
      [
        f"{share:.0%}",
        METHODS[ours].title,
        METHODS[pruning].title,
        _text(_task(found[ours]), difference, spread, "+"),
        verdict,
      ]
    )
  header = ["zeros", "best of ours", "best of pruning", "difference", "better"]
  return (
    f"{table(header, rows)}\n\nThe best of each are chosen by the test accuracies"
    " shown here, from more methods of ours than of pruning."
  )


def _protocol(found: Found) -> str:
  first = next(iter(found.values()))
  task = TASKS[first["config"]["task"]["name"]]
  values = "; ".join(
    f"{METHODS[name].title}: {METHODS[name].hyper}"
    f" {', '.join(f'{v:g}' for v in result['config']['values'])}"
    for name, result in found.items()
    if max(result["config"]["values"]) > 0
  )
  note = "They were not searched here, but taken from the small tasks. "
  if any(result.get("search") for result in found.values()):
    note = ""
  return (
    f"{task.described}, {task.epochs} epoch{'s' if task.epochs > 1 else ''}"
    + (f" of {task.train_size} examples" if task.train_size else "")
    + f" in batches of {task.batch_size}, {task.trained};"
    f" {first['config']['seeds']} seeds. Pull: beta (of ADMM, rho) times the learning"
    f" rate. Values: {values}. {note}{results.footer(list(found.values()))}"
  )


# Each looks the same on all pictures. More would not be told apart.
_DRAWN = {
  "cut": (plots.PURPLE, "o"),
  "tuned": (plots.PURPLE, "s"),
  "pruning-leaf": (plots.SKY, "D"),
  "pruning-all": (plots.YELLOW, "^"),
  "rvsm-l0": (plots.GREY, "o"),
  "through-l0": (plots.BLUE, "s"),
  "through-all": (plots.GREEN, "D"),
  "sparsify": (plots.ORANGE, "^"),
}


def draw(title: str, found: Found, path: pathlib.Path) -> None:
  """Accuracy against the weights that are left, with bars of a standard error."""
  found = {name: found[name] for name in _DRAWN if name in found}
  in_nats = all(_task(result).in_nats for result in found.values())
  sign, width = (-1, 0.3) if in_nats else (1, 0.07)
  measured = "test loss" if in_nats else "test accuracy"
  unit = "nats per character, upside down" if in_nats else "accuracy"
  styles = {"dense": ":", "pruning": "--", "ours": "-"}
  best = {
    name: max(scores(result, share).mean() for share in result["config"]["shares"])
    for name, result in found.items()
  }
  best_mean = max(best.values())
  with plots.figure(path, width=8.6, height=4.8) as axes:
    panel = axes[0, 0]
    for name, result in found.items():
      color, marker = _DRAWN[name]
      shares = result["config"]["shares"]
      values = [sign * scores(result, share) for share in shares]
      panel.errorbar(
        [1 - share for share in shares],
        [v.mean() for v in values],
        yerr=[error([v]) for v in values],
        linestyle=styles[METHODS[name].group],
        color=color,
        marker=marker,
        markersize=4,
        elinewidth=0.8,
        linewidth=1.3,
        label=METHODS[name].title
        + (": below" if best[name] < best_mean - width else ""),
      )
    panel.set(
      title=f"{title}: {measured} of the sparse network",
      xlabel="weights that are not zero (logarithmic)",
      ylabel=unit,
      xscale="log",
      ylim=(sign * best_mean - sign * width, sign * best_mean + sign * 0.1 * width),
    )
    panel.set_xticks([1 - share for share in shares], [f"{1 - s:.0%}" for s in shares])
    panel.minorticks_off()
    panel.invert_xaxis()
    if not in_nats:
      plots.percent_axis(panel, 0)
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
