"""Operators that work for ten token lifetimes without an interruption.

The operators in Python and the sandbox run in this process: while it gets no CPU time, no token is replaced, and the
token of a request is verified late. So the lifetimes are long enough for a busy machine, and ./dev test leaves these
tests out.
"""

import asyncio
import time

import pytest

from tests.end_to_end.kubeconfigs.conftest import Start
from tests.end_to_end.kubeconfigs.operators import Operator, operate_in_go
from tests.end_to_end.kubeconfigs.reading import go_reader

LIFE_S = 20.0
LIFETIMES = 10

pytestmark = [pytest.mark.builds, pytest.mark.nightly, pytest.mark.timeout(LIFE_S * LIFETIMES + 400)]


async def test_operator_keeps_its_engagement_and_watch_over_ten_token_lifetimes(start: Start) -> None:
    async with start(token_life=LIFE_S) as workspace:
        ends_at = time.time() + LIFETIMES * LIFE_S
        fed, asking = Operator("fed", ends_at), Operator("asking", ends_at)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fed.work(workspace, fed=True))
            tasks.create_task(asking.work(workspace, fed=False))
    assert workspace.refused == []
    for operator in (fed, asking):
        operator.require_undisturbed()
        assert len(operator.tokens) >= LIFETIMES, "want one token or more for each lifetime"


async def test_go_operator_with_an_exec_kubeconfig_works_for_ten_token_lifetimes(start: Start) -> None:
    program = await asyncio.to_thread(go_reader)
    async with start(token_life=LIFE_S) as workspace:
        written = await operate_in_go(workspace, program, ends_at=time.time() + LIFETIMES * LIFE_S)
    assert workspace.refused == []
    assert written > LIFETIMES
