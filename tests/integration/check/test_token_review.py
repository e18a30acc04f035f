"""Findings of `check` about listeners with bearer tokens."""

import io
import json
from pathlib import Path

import pytest

from milo_discoveryd.check import check
from milo_discoveryd.check.checks import check_token_reviews
from milo_discoveryd.config import load
from milo_discoveryd.identity.token_review import TokenReviewer
from milo_kube.http.errors import TransportError
from milo_sandbox import Sandbox
from tests.unit.credentials.backend import Answer, ScriptedApi, answering


async def review_lines(tmp_path: Path, upstream: Path, **reviews: str) -> list[str]:
    """Return the lines about token reviews, with their fixes."""
    file = tmp_path / "config.yaml"
    listen = [{"address": f"unix://{tmp_path}/d.sock", "tokens": True}]
    file.write_text(json.dumps({"listen": listen, "token_review": reviews, "http_listen": "off"}))
    out = io.StringIO()
    await check(load({"discovery_kubeconfig": str(upstream)}, {}, file), out, {})
    lines = out.getvalue().splitlines()
    return [
        line for place, line in enumerate(lines) if "token reviews" in "".join(lines[max(0, place - 1) : place + 1])
    ]


async def test_check_passes_if_a_token_review_rejects_an_invalid_token_and_fails_without_a_kubeconfig(
    tmp_path: Path,
) -> None:
    async with Sandbox() as sandbox:
        kubeconfig = sandbox.write_kubeconfig(tmp_path / "kubeconfig")
        line, *_ = await review_lines(tmp_path, kubeconfig)
        assert line.startswith("ok    token reviews: ")
        assert "rejects an invalid one" in line

        line, fix, *_ = await review_lines(tmp_path, kubeconfig, kubeconfig=str(tmp_path / "none"))
        assert line.startswith("fail  token reviews: ")
        assert fix.strip() == "-> correct the kubeconfig, or set another one in token_review.kubeconfig"


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (answering(403, {}), "(403): add to the daemon's role: create on tokenreviews.authentication.k8s.io"),
        (TransportError("connect", "nobody there"), "nobody there"),
        (
            answering(201, {"status": {"authenticated": True, "user": {"username": "admin"}, "audiences": ["ours"]}}),
            "accepts an invalid token as admin",
        ),
    ],
    ids=["forbidden", "unreachable", "takes anything"],
)
async def test_check_fails_if_a_token_review_fails_or_accepts_an_invalid_token(
    answer: Answer | TransportError, seen: str
) -> None:
    found = await check_token_reviews(TokenReviewer(ScriptedApi(answer), origin="the cluster", audiences=["ours"]))
    assert found.level == "fail"
    assert seen in found.message
