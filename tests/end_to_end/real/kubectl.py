"""Real kubectl with an issued kubeconfig."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

_LONGEST_S = 60


async def kubectl(kubeconfig: Path, *arguments: str, proxy: str = "") -> str:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not on PATH: kubeconfigs are not tested with it")
    process = await asyncio.create_subprocess_exec(
        program,
        f"--kubeconfig={kubeconfig}",
        *arguments,
        env={"HOME": str(kubeconfig.parent), "HTTPS_PROXY": proxy},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_LONGEST_S):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def user_of(kubeconfig: Path, *, proxy: str = "") -> str:
    """Return the user that the server authenticates."""
    review = json.loads(await kubectl(kubeconfig, "auth", "whoami", "-o", "json", proxy=proxy))
    return str(review["status"]["userInfo"]["username"])
