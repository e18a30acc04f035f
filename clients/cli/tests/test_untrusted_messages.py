"""Property tests that what the client converts from messages with any field values is printed."""

from __future__ import annotations

import json

from google.protobuf.duration_pb2 import Duration
from hypothesis import example, given

from clients.python.tests.test_untrusted_messages import BATCHES, SERVER_INFOS, received
from milo_discovery import Event, _convert
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery_cli import json_output, text_output, yaml_output


@given(BATCHES)
def test_event_with_any_fields_is_printed(batch: pb.WatchClustersResponse):
    for item in received(batch):
        if isinstance(item, Event):
            document = json_output.to_json(item)
            assert json.loads(json_output.line(document)) == document
            yaml_output.document(document)
            lines = "".join(text_output.event_line(text_output.event_row(item, None, wide=True), wide=True))
            assert lines.isprintable()


@given(SERVER_INFOS)
@example(pb.GetServerInfoResponse(limits=pb.Limits(stalled_timeout=Duration(seconds=315_576_000_001))))
def test_any_server_info_is_printed(message: pb.GetServerInfoResponse):
    json_output.to_json(_convert.server_info(message))
