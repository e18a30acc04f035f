"""Random changes in the sandbox: consistent, of every kind, and reproducible by seed."""

from milo_sandbox import Sandbox
from milo_sandbox.milo import OWNER_ANNOTATION, PROJECT_FINALIZER, PROJECT_NAME_LABEL, PROJECT_UID_LABEL
from milo_sandbox.resources import CONFIG_MAPS, PROJECTS
from milo_sandbox.selectors import EVERYTHING


def lively(*, seed: int = 7, projects: int = 20) -> Sandbox:
    sandbox = Sandbox(seed=seed)
    sandbox.populate(projects, finalizers=[PROJECT_FINALIZER])
    return sandbox


def history(sandbox: Sandbox) -> list[tuple[str, str]]:
    events = sandbox.store[PROJECTS].history.since(0)
    return [(seen[0], seen[1].name) for event in events if (seen := event.seen_through(EVERYTHING))]


def run(sandbox: Sandbox, steps: int = 2000) -> None:
    churn = sandbox.churn()
    for _ in range(steps):
        churn.step()


def test_churn_is_reproducible_by_seed() -> None:
    first, second, other = lively(), lively(), lively(seed=8)
    for sandbox in (first, second, other):
        run(sandbox, 500)
    assert history(first) == history(second) != history(other)


def test_churn_makes_every_kind_of_change() -> None:
    sandbox = lively()
    run(sandbox)
    bodies = [event.record.body for event in sandbox.store[PROJECTS].history.since(0)]
    for mark in (
        b'"CleanupStarted"',
        b'"CleanupAwaitingCompletion"',
        b'"CleanupComplete"',
        b'"Suspended","status":"True"',
        b'"Ready","status":"False"',
    ):
        assert any(mark in body for body in bodies), mark
    events = history(sandbox)
    gone = {name for kind, name in events if kind == "DELETED"}
    added = [name for kind, name in events if kind == "ADDED"]
    assert gone
    assert any(added.count(name) > 1 for name in gone), "no name was used again"


def test_churn_deletes_the_objects_of_deleted_projects() -> None:
    sandbox = lively()
    churn, (name, *_) = sandbox.churn(), sandbox.projects.names()
    store = sandbox.control_plane(name)
    store.create(CONFIG_MAPS, {"metadata": {"name": "left"}}, namespace="default")
    sandbox.projects.delete(name)
    while name in sandbox.projects:
        churn.step()
    assert [record.name for record in store[CONFIG_MAPS]] == []


def test_churn_keeps_projects_and_control_planes_consistent() -> None:
    sandbox = lively()
    churn = sandbox.churn()
    for _ in range(2000):
        churn.step()
    assert set(sandbox.projects.names()) == set(sandbox.control_planes.names())
    for name in sandbox.projects.names():
        project, plane = sandbox.projects.read(name), sandbox.control_planes.read(name)
        assert plane["metadata"]["labels"][PROJECT_NAME_LABEL] == name
        assert plane["metadata"]["labels"][PROJECT_UID_LABEL] == project["metadata"]["uid"]
        assert plane["metadata"]["annotations"][OWNER_ANNOTATION] == project["spec"]["ownerRef"]["name"]


def test_churn_provisions_and_cleans_up_projects_of_clients() -> None:
    sandbox = lively(projects=5)
    churn = sandbox.churn()
    sandbox.projects.create("by-hand", finalizers=[PROJECT_FINALIZER])
    steps = iter(range(1000))
    while "by-hand" not in sandbox.control_planes or b'"True"' not in body(sandbox, "by-hand"):
        next(steps)
        churn.step()
    victim = next(name for name in sandbox.projects.names() if name != "by-hand")
    uid = sandbox.projects.read(victim)["metadata"]["uid"]
    sandbox.projects.delete(victim)
    while victim in sandbox.projects and sandbox.projects.read(victim)["metadata"]["uid"] == uid:
        next(steps)
        churn.step()


def body(sandbox: Sandbox, name: str) -> bytes:
    return sandbox.store.get(PROJECTS, name).body


def test_churn_survives_deletions_by_clients() -> None:
    sandbox = Sandbox(seed=3)
    sandbox.populate(5)
    churn = sandbox.churn()
    for number in range(600):
        churn.step()
        if number % 5 == 0 and len(sandbox.projects):
            sandbox.projects.delete(sandbox.projects.names()[0])
    for _ in range(200):
        churn.step()
    assert set(sandbox.control_planes.names()) == set(sandbox.projects.names())


def test_populating_the_sandbox_skips_existing_names() -> None:
    taken = Sandbox(seed=1).names.project()
    sandbox = Sandbox(seed=1)
    before = sandbox.projects.create(taken)
    assert taken not in sandbox.populate(20)
    assert len(sandbox.projects) == 21
    assert sandbox.projects.read(taken) == before
