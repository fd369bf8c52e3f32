"""Figures about PipeDiT's tables that docs/results/planner.md states."""

import json
import sys

from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import planner_paper  # type: ignore[import-not-found]  # mypy does not check benchmarks/


def test_the_papers_tables() -> None:
    fit = planner_paper.Fit.in_files()
    assert len(vars(fit)) == 6
    data = json.loads(planner_paper.DATA.read_text())
    cells = list(planner_paper.cells(data, planner_paper.Paper(fit.cluster())))
    fitted = [cell for cell in cells if cell.fitted]
    others = [cell for cell in cells if not cell.fitted]
    assert (len(fitted), len(others)) == (24, 248)
    assert planner_paper.summary(others)["mean"] < 0.07
    changes = planner_paper.changes(cells)
    assert (sum(change["right"] for change in changes), len(changes)) == (27, 29)
