"""The liveness checks of an API server."""

from milo_kube.api_request import Answer
from milo_kube.liveness_probe import LivenessProbe
from milo_kube.reflect.liveness_policy import LivenessPolicy


class FailingApi:
    def __init__(self, body: bytes) -> None:
        self._answer = Answer(500, {}, body)

    async def get_at_once(self, path: str, *, timeout_s: float) -> Answer:
        return self._answer

    async def drop(self) -> None:
        pass


async def failure_with(body: bytes) -> str:
    probe = LivenessProbe(FailingApi(body), LivenessPolicy(), lambda _: None)
    await probe._send_check()
    probe.is_lost = True
    failure = await probe.give_up()
    assert failure is not None
    return failure.message


async def test_failure_quotes_the_failed_checks() -> None:
    message = await failure_with(b"[+]ping ok\n[-]etcd failed: reason withheld\nlivez check failed")
    assert message == "the server answers /livez with 500: [-]etcd failed: reason withheld"


async def test_failed_checks_are_looked_for_only_in_the_beginning_of_a_large_answer() -> None:
    assert await failure_with(b"\n" * 20_000 + b"[-]etcd") == "the server answers /livez with 500: "
