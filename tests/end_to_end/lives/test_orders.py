"""A state machine on the sandbox: a project that is suspended, deleted, reinstated and created again in random orders
ends deleted, with nothing left of what the operator held."""

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from milo_sandbox import Sandbox
from tests.end_to_end.lives.world import OPERATORS, World
from tests.integration.sandbox_conformance.lives import Places

pytestmark = pytest.mark.timeout(900)  # the first build of the operator in Go compiles controller-runtime

_EXAMPLES = 8
_STEPS = 8


class _Orders(RuleBasedStateMachine):
    """Random orders of steps, each with a new project, on one sandbox with one operator."""

    loop: asyncio.AbstractEventLoop
    places: Places
    finalizer: str
    number = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).number += 1
        self._world = World(self.places, f"project-{self.number}", self.finalizer)

    @rule(data=strategies.data())
    def step(self, data: strategies.DataObject) -> None:
        step = data.draw(strategies.sampled_from(self._world.possible), label="step")
        self._run(self._world.do(step))

    @precondition(lambda self: self._world.deleting)
    @rule()
    def await_the_end(self) -> None:
        self._run(self._world.recreate())

    def teardown(self) -> None:
        self._run(self._world.end())

    def _run(self, step: object) -> None:
        self.loop.run_until_complete(step)  # type: ignore[arg-type]


@pytest.mark.parametrize("operator", ["python", pytest.param("go", marks=[pytest.mark.builds, pytest.mark.nightly])])
def test_project_deletion_completes_after_random_sequences_of_steps(operator: str) -> None:
    if operator == "go" and shutil.which("go") is None:
        pytest.skip("no go command on this machine, which builds the operator")
    with asyncio.Runner() as runner, TemporaryDirectory(prefix="milo-") as name:
        stack = AsyncExitStack()

        async def begin() -> Places:
            sandbox = await stack.enter_async_context(Sandbox(controllers=True))
            kubeconfig = sandbox.write_kubeconfig(Path(name) / "kubeconfig")
            own = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
            daemon = {"discovery_kubeconfig": str(kubeconfig), "kubeconfigs": {"issuers": [own]}}
            places = Places(kubeconfig, kubeconfig, kubeconfig)
            await stack.enter_async_context(OPERATORS[operator].run(Path(name), daemon, places))
            return places

        _Orders.places, _Orders.loop, _Orders.finalizer = (
            runner.run(begin()),
            runner.get_loop(),
            OPERATORS[operator].finalizer,
        )
        try:
            run_state_machine_as_test(
                _Orders, settings=settings(max_examples=_EXAMPLES, stateful_step_count=_STEPS, deadline=None)
            )
        finally:
            runner.run(stack.aclose())
