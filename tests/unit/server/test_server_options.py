"""The options of the gRPC servers."""

from datetime import timedelta

from milo_discoveryd.config.settings import ShardingSettings
from milo_discoveryd.server.server import OPTIONS


def test_dead_connection_is_noticed_well_before_a_cluster_that_moves_is_engaged_elsewhere() -> None:
    """Found by a reader: a NAT had forgotten the connection of a stream. Its operator was told of no move, and its
    renewals came over other connections: it worked on beside the next owner's."""
    options = dict(OPTIONS)
    noticed_after = timedelta(milliseconds=options["grpc.keepalive_time_ms"] + options["grpc.http2.ping_timeout_ms"])
    assert noticed_after <= ShardingSettings(group="dns").release_timeout * 2 / 3
