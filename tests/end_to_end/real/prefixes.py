"""Projects' control planes under the paths of one host, each of them a kube-apiserver of its own."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from tests.end_to_end.real.certificates import Authority
from tests.end_to_end.real.servers import RealApi

_PREFIX = "/apis/resourcemanager.miloapis.com/v1alpha1/projects/{project}/control-plane"
_PASSED_ON = ("Authorization", "Accept", "Accept-Encoding", "Content-Type")
_PASSED_BACK = ("Content-Type", "Content-Encoding", "Retry-After")


@asynccontextmanager
async def serving_projects(planes: Mapping[str, RealApi], authority: Authority) -> AsyncIterator[str]:
    """Yield the URL of a server with a certificate of this authority, which forwards requests by the prefix of their
    path.
    """
    trust = {name: ssl.create_default_context(cafile=str(plane.authority.file)) for name, plane in planes.items()}
    certificate, key = authority.server("projects")
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(certificate, key)

    async def pass_on(request: web.Request) -> web.StreamResponse:
        project = request.match_info["project"]
        if project not in planes:
            return web.Response(status=404)
        path = request.raw_path.removeprefix(_PREFIX.format(project=project))
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        try:
            async with session.request(
                request.method,
                planes[project].url + path,
                headers=headers,
                data=await request.read(),
                ssl=trust[project],
            ) as answer:
                returned = {name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers}
                response = web.StreamResponse(status=answer.status, headers=returned)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, ConnectionError):
            # Abort, as a server does that is unreachable, or that is killed during a response.
            if request.transport is not None:
                request.transport.abort()
            raise

    application = web.Application()
    application.router.add_route("*", _PREFIX + "/{path:.*}", pass_on)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    async with aiohttp.ClientSession(
        auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=own)
            await site.start()
            host, port = runner.addresses[0][:2]
            yield f"https://{host}:{port}"
        finally:
            await runner.cleanup()
