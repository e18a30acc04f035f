"""The faults of a simulation, at random times."""

from collections.abc import Callable
from random import Random

from tests.simulation.sharding.pod import Pod
from tests.simulation.sharding.simulation_run import FAULTS_UNTIL_S, Simulation


class Faults:
    def __init__(self, world: Simulation) -> None:
        self._world = world
        self._random = world.random
        self._joined = 0
        self._ending: set[Pod] = set()

    def _some(self) -> Pod | None:
        living = self._world.living
        return self._random.choice(living) if living else None

    def _later(self, least: float, most: float, happens: Callable[[], None]) -> None:
        self._world.timeline.after(self._random.uniform(least, most), happens)

    def kill_pod(self) -> None:
        if pod := self._some():
            pod.kill()
            self._later(1, 60, lambda: self._start(pod.member.name))

    def kill_daemon(self) -> None:
        """Kill the daemon alone: its container is restarted, and its operator continues."""
        if pod := self._some():
            pod.kill(with_operator=False)
            # The former operator continues until its deadline. The kubelet restarts no container of a terminating pod.
            self._later(1, 60, lambda: self._start(pod.member.name, pod) if pod not in self._ending else None)

    def restart(self) -> None:
        """Restart the pod as the kubelet does: stop it, kill it after its grace period, and start another one."""
        if pod := self._some():
            self._ending.add(pod)
            pod.member.stop()
            pod.step()
            self._later(1, 30, lambda: self._replace(pod))

    def pause(self) -> None:
        if pod := self._some():
            pod.pause()
            self._later(1, 60, pod.resume)

    def suspend(self) -> None:
        if pod := self._some():
            self._world.suspend(pod.host, self._random.uniform(1, 90))

    def lose_requests(self) -> None:
        if pod := self._some():
            self._world.lost_to.add(pod.host)
            self._later(1, 70, lambda: self._world.lost_to.discard(pod.host))

    def lose_responses(self) -> None:
        if pod := self._some():
            self._world.lost_from.add(pod.host)
            self._later(1, 70, lambda: self._world.lost_from.discard(pod.host))

    def fail_requests(self) -> None:
        self._world.error_share = self._random.uniform(0.1, 0.9)
        self._later(1, 60, self._heal)

    def stop_api(self) -> None:
        self._world.is_down = True
        self._later(1, 60, self._heal)

    def _heal(self) -> None:
        self._world.is_down, self._world.error_share = False, 0.0

    def lag(self) -> None:
        """Serve reads from a replica that lags behind."""
        self._world.lag_s = self._random.uniform(1, 20)

        def end() -> None:
            self._world.lag_s = 0.0

        self._later(1, 30, end)

    def restore(self) -> None:
        """Stop the API server, and start it from a backup."""
        world = self._world
        if world.timeline.now < 45:
            return
        as_of = self._random.uniform(40, world.timeline.now)
        world.is_down = True

        def restored() -> None:
            world.api.restore(as_of)
            self._heal()

        self._later(0, 40, restored)

    def start_twice(self) -> None:
        # A pod that terminates has recorded its stop, so that its successor need not wait for its fence. A StatefulSet
        # starts none before the former pod is gone, and nothing would tell a twin from it.
        if (pod := self._some()) and pod not in self._ending:
            twin = self._world.start(pod.member.name)
            self._later(5, 60, twin.kill)

    def join(self) -> None:
        if len({pod.member.name for pod in self._world.living}) < 5:
            self._joined += 1
            self._start(f"joined-{self._joined}")

    def leave(self) -> None:
        pod = self._some()
        if pod is not None and len({pod.member.name for pod in self._world.living}) > 2:
            pod.member.leave()
            pod.step()

    def change_lease(self) -> None:
        """Change a Lease as another program would."""
        if pod := self._some():
            unreadable = {"problem": "it cannot be read", "term": "", "pending": frozenset(), "acknowledged": 0}
            kinds = [unreadable, {"acknowledged": 9999}, {"is_leaving": True}, {"holder": ""}]
            changes = self._random.choice(kinds)
            self._world.api.change(pod.member.name, self._world.timeline.now, **changes)

    def step_wall_clock(self) -> None:
        if pod := self._some():
            pod.host.wall_error += self._random.choice((-60, -30, 30, 60))

    def _stop_successor(self) -> None:
        """Kill the daemon alone, and stop its successor in another pod. The operator of the former one continues until
        its deadline."""
        pod = self._some()
        if pod is None or pod in self._ending:
            return
        pod.kill(with_operator=False)
        if any(other.member.name == pod.member.name for other in self._world.living):
            return
        successor = self._world.start(pod.member.name)
        self._ending.add(successor)

        def stop() -> None:
            successor.member.stop()
            successor.step()

        self._later(1, 6, stop)
        self._later(7, 10, lambda: self._replace(successor))

    def _replace(self, pod: Pod) -> None:
        pod.kill()  # with its operator, which may have outlived the daemon
        self._start(pod.member.name)

    def _start(self, name: str, beside: Pod | None = None) -> None:
        if not any(pod.member.name == name for pod in self._world.living):
            self._world.start(name, beside.host if beside else None)


KINDS = [name for name in vars(Faults) if not name.startswith("_")]
STOPPED_SUCCESSOR = "stop_successor"
STOPPED_SUCCESSORS = 0.3
"""Share of the simulations that have this fault: it is drawn apart, so that the others of a seed stay as they were."""


def schedule(world: Simulation) -> float:
    """Plan random faults; return the time when all of them have ended."""
    faults, random = Faults(world), world.random
    for _ in range(random.randint(2, 8)):
        kind = random.choice(KINDS)
        at = random.uniform(0, FAULTS_UNTIL_S)
        world.outcome.faults.append(f"{at:.0f} {kind}")
        world.timeline.at(at, getattr(faults, kind))
    apart = Random(f"successors that are stopped {world.outcome.seed}")
    if apart.random() < STOPPED_SUCCESSORS:
        at = apart.uniform(0, FAULTS_UNTIL_S)
        world.outcome.faults.append(f"{at:.0f} {STOPPED_SUCCESSOR}")
        world.timeline.at(at, faults._stop_successor)
    return FAULTS_UNTIL_S + 90.0
