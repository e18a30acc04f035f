"""What a check says of listeners that take bearer tokens."""

import io
import json
from pathlib import Path

import pytest

from milo_discoveryd.check import check
from milo_discoveryd.check.reviewing import reviewing
from milo_discoveryd.config import load
from milo_discoveryd.daemon_errors import TransportError
from milo_discoveryd.identity.token_review import TokenReviewer
from milo_sandbox import Sandbox
from tests.unit.credentials.backend import Answer, ScriptedApi, answering


async def told(tmp_path: Path, upstream: Path, **reviews: str) -> list[str]:
    """Of token reviews, and what is done about them."""
    file = tmp_path / "config.yaml"
    listen = [{"address": f"unix://{tmp_path}/d.sock", "tokens": True}]
    file.write_text(json.dumps({"listen": listen, "token_review": reviews, "http_listen": "off"}))
    out = io.StringIO()
    await check(load({"discovery_kubeconfig": str(upstream)}, {}, file), out, {})
    lines = out.getvalue().splitlines()
    return [
        line for place, line in enumerate(lines) if "token reviews" in "".join(lines[max(0, place - 1) : place + 1])
    ]


async def test_a_server_that_says_whose_tokens_are_whose_is_all_it_takes(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        kubeconfig = sandbox.write_kubeconfig(tmp_path / "kubeconfig")
        line, *_ = await told(tmp_path, kubeconfig)
        assert line.startswith("ok    token reviews: ")
        assert "says whose tokens are whose" in line

        line, mend, *_ = await told(tmp_path, kubeconfig, kubeconfig=str(tmp_path / "none"))
        assert line.startswith("fail  token reviews: ")
        assert mend.strip() == "-> mend it, or name another one: token_review.kubeconfig"


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (answering(403, {}), "(403): grant the daemon's role create on tokenreviews.authentication.k8s.io"),
        (TransportError("connect", "nobody there"), "nobody there"),
        (
            answering(201, {"status": {"authenticated": True, "user": {"username": "admin"}, "audiences": ["ours"]}}),
            "takes a token that was made up for one of admin",
        ),
    ],
    ids=["forbidden", "unreachable", "takes anything"],
)
async def test_what_keeps_callers_out_or_lets_everybody_in_is_told(answer: Answer | TransportError, seen: str) -> None:
    found = await reviewing(TokenReviewer(ScriptedApi(answer), origin="the cluster", audiences=["ours"]))
    assert found.level == "fail"
    assert seen in found.seen
