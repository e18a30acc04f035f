"""The size of measurements: full, for published figures, or small, to check that the measurements work."""

import msgspec


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    small: int = 1_000
    clusters: int = 10_000
    large: int = 100_000
    rounds: int = 3
    with_go: bool = True
    """Whether to run peers that need Go, and minutes for their first build."""
    latency_writes: int = 300
    latency_rounds: int = 7
    """Many short rounds, since other load on the machine affects single changes most."""
    writes_per_s: float = 50.0
    fanout_changes: int = 10_000
    fanout_burst: int = 100
    fanout_rounds: int = 7
    subscribers: tuple[int, ...] = (1, 20, 100)
    stuck: int = 10
    slow_reader_bursts: int = 50
    herd: int = 500
    idle_s: float = 20.0
    token_life_s: float = 20.0
    issues: int = 2_000
    fleet: int = 50_000
    fleet_subscribers: int = 500
    churn_subscribers: int = 20
    changes_per_s: float = 200.0
    churn_s: float = 60.0
    viewed: int = 2_000
    viewed_s: float = 15.0
    capacity_projects: tuple[int, ...] = (1_000, 10_000, 50_000)
    capacity_subscribers: tuple[int, ...] = (1, 20, 100)
    capacity_changes: tuple[float, ...] = (1.0, 10.0, 100.0)
    capacity_s: float = 10.0
    flood_watches: int = 23_000
    flood_calls: int = 6_000
    flood_filters: int = 1_000
    flood_connections: int = 1_000
    flood_handshakes: int = 80
    flood_s: float = 20.0
    operators: tuple[int, int, int] = (100, 1_000, 5_000)
    operators_memory: tuple[int, int] = (25, 125)
    operator_rounds: int = 100
    controllers: tuple[int, int, int] = (100, 1_000, 200)
    """A small and a large number of clusters, and the number for kopf."""
    objects: tuple[int, int] = (40, 400)
    busy_s: float = 5.0
    cost_projects: int = 100
    milo_projects: int = 400
    shard_members: int = 5
    shard_projects: tuple[int, int] = (100, 1_000)
    shard_quiet_s: float = 60.0


FULL = Scale(name="full")
QUICK = Scale(
    name="quick",
    with_go=False,
    small=500,
    clusters=1_000,
    large=2_000,
    latency_writes=100,
    latency_rounds=3,
    fanout_changes=1_000,
    fanout_rounds=3,
    subscribers=(1, 20),
    slow_reader_bursts=20,
    herd=50,
    idle_s=5.0,
    issues=500,
    fleet=2_000,
    fleet_subscribers=50,
    churn_s=10.0,
    viewed_s=5.0,
    capacity_projects=(1_000,),
    capacity_subscribers=(1, 20),
    capacity_s=3.0,
    flood_watches=2_000,
    flood_calls=1_000,
    flood_filters=100,
    flood_connections=100,
    flood_handshakes=20,
    flood_s=5.0,
    operators=(5, 20, 40),
    operators_memory=(5, 20),
    operator_rounds=5,
    controllers=(10, 100, 20),
    objects=(5, 40),
    cost_projects=20,
    milo_projects=20,
    shard_members=4,
    shard_projects=(10, 50),
    shard_quiet_s=30.0,
)
TINY = Scale(
    name="tiny",
    with_go=False,
    small=20,
    clusters=50,
    large=80,
    rounds=1,
    latency_writes=10,
    latency_rounds=1,
    fanout_changes=20,
    fanout_rounds=1,
    fanout_burst=10,
    subscribers=(1, 3),
    stuck=1,
    slow_reader_bursts=3,
    herd=5,
    idle_s=0.2,
    token_life_s=5.0,
    issues=20,
    fleet=50,
    fleet_subscribers=3,
    churn_subscribers=2,
    churn_s=0.5,
    viewed=50,
    viewed_s=0.5,
    capacity_projects=(20,),
    capacity_subscribers=(2,),
    capacity_changes=(20.0,),
    capacity_s=0.5,
    flood_watches=200,
    flood_calls=50,
    flood_filters=60,
    flood_connections=20,
    flood_handshakes=2,
    flood_s=0.5,
    operators=(2, 5, 8),
    operators_memory=(2, 4),
    milo_projects=3,
    operator_rounds=1,
    busy_s=0.5,
    controllers=(1, 3, 2),
    objects=(1, 2),
)
