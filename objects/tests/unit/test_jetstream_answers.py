import json

import msgspec
import pytest

from milo_objects.jetstream_answers import JetStreamAnswer, StreamConfig

USABLE = StreamConfig(
    subjects=frozenset({"milo.clusters.>", "milo.objects.>", "milo.publisher", "other"}),
    max_msgs_per_subject=1,
    retention="limits",
    discard="new",
    max_msgs=-1,
    allow_msg_ttl=True,
)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"no JSON", b"null", b"[]", b'{"error":"refused"}', b'{"config":null}', b'{"config":{"subjects":5}}'),
        *(b'{"state":{"last_seq":"1"}}', b"\xff\xfe{}", b"[" * 100_000, b'{"seq":1.5}'),
    ],
)
def test_answer_of_another_form_is_one_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="not an answer of JetStream"):
        JetStreamAnswer.decode(body)


def test_answer_of_a_stream_has_its_settings() -> None:
    config = {"subjects": ["milo.>"], "num_replicas": 3, "max_msg_size": 7, "new": {"unknown": 1}}
    found = JetStreamAnswer.decode(json.dumps({"created": "now", "config": config, "state": {"last_seq": 9}}).encode())
    assert (found.created, found.state.last_seq) == ("now", 9)
    assert found.config == StreamConfig(subjects=frozenset({"milo.>"}), num_replicas=3, max_msg_size=7)


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("subjects", frozenset({"milo.objects.>"}), "nats stream edit milo --subjects"),
        ("discard", "old", "run: nats stream edit milo --discard=new"),
        ("deny_purge", True, "no option changes it: delete the stream"),
    ],
)
def test_setting_that_would_lose_messages_is_named_with_its_remedy(setting: str, value: object, remedy: str) -> None:
    assert not USABLE.problem("milo")
    problem = msgspec.structs.replace(USABLE, **{setting: value}).problem("milo")
    assert f"the stream milo has {setting}" in problem
    assert remedy in problem
