"""The kill matrix is whole, and each run can be carried out."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.chaos_plan import PHASES, SERVICES, SIGNALS, cells, parse_cell, plan


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_every_cell_is_planned_once(seed):
    """Each service in each phase with each signal, but for training runs where there are none."""
    planned = Counter(cell for run in plan(seed) for cell in run)

    assert set(planned) == set(cells())
    assert set(planned.values()) == {1}
    assert len(planned) == (len(SERVICES) - 1) * len(PHASES) * len(SIGNALS) + 5 * len(SIGNALS)


def test_no_run_kills_twice_in_a_phase_or_one_service_more_than_twice():
    """The first and the last phase, which is after the job, may have the same service."""
    for run in plan():
        assert len({cell.phase for cell in run}) == len(run)
        assert len({cell.service for cell in run if cell.phase != "idle"}) >= len(run) - 1


def test_a_cell_is_read_as_it_is_written():
    assert [parse_cell(str(cell)) for cell in cells()] == list(cells())


@pytest.mark.parametrize("text", ["", "actor", "actor:base", "actor:base:SIGINT", "training run:idle:SIGKILL"])
def test_what_is_no_cell_is_refused_with_what_there_is(text):
    with pytest.raises(ValueError, match=r"Write SERVICE:PHASE:SIGNAL"):
        parse_cell(text)
