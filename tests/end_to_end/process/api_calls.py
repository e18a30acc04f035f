"""Requests to the API server of a kubeconfig, as its user."""

import base64
import json
import ssl
from typing import Any

import aiohttp
import yaml

_REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


async def call(
    kubeconfig: bytes, method: str, path: str, body: Any = None, media_type: str = "application/json"
) -> tuple[int, Any]:
    """Return the status and the document of the response."""
    config = yaml.safe_load(kubeconfig)
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    headers = {"Authorization": f"Bearer {user['token']}", "Content-Type": media_type}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(
            method, cluster["server"] + path, data=None if body is None else json.dumps(body), ssl=context
        ) as response,
    ):
        return response.status, await response.json()


async def user_of(kubeconfig: bytes) -> str:
    """Return the username that the API server authenticates."""
    _, answer = await call(kubeconfig, "POST", _REVIEWS, {})
    return str(answer["status"]["userInfo"]["username"])
