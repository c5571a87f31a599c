"""The transition table."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import IllegalTransition
from service.jobs.state import FINISHED, FOLLOWERS, OWNED, JobState, check_transition


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert set(FOLLOWERS) == set(JobState)
    reached = {JobState.QUEUED}.union(*FOLLOWERS.values())
    assert reached == set(JobState)


def test_a_succeeded_job_stays_succeeded() -> None:
    for state in JobState:
        with pytest.raises(IllegalTransition, match="succeeded"):
            check_transition("j", JobState.SUCCEEDED, state)


@given(st.lists(st.sampled_from(list(JobState)), max_size=12))
def test_no_walk_leaves_the_table(wanted: list[JobState]) -> None:
    """A walk that takes only allowed steps passes through `running` before it succeeds."""
    present, been = JobState.QUEUED, [JobState.QUEUED]
    for state in wanted:
        if state in FOLLOWERS[present]:
            check_transition("j", present, state)
            present = state
            been.append(state)
        else:
            with pytest.raises(IllegalTransition):
                check_transition("j", present, state)
    if JobState.SUCCEEDED in been:
        assert been[been.index(JobState.SUCCEEDED) - 1] == JobState.RUNNING


def test_only_an_owned_job_is_ended_by_a_worker() -> None:
    for state, following in itertools.product(JobState, JobState):
        if following == JobState.SUCCEEDED and following in FOLLOWERS[state]:
            assert state in OWNED
    assert not OWNED & FINISHED
