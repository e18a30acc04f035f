"""How a listener finds out who calls, where no connection says it."""

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.server.service import Context, Identify


def anybody(listener: str) -> Identify:
    """Whoever may connect there; that is all that is known."""

    async def identify(context: Context) -> Caller:
        return Caller(listener=listener, peer=context.peer())

    return identify
