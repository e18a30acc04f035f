"""Answers to RenewOwnership."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import grpc

from milo_conformance.daemon import Abort
from milo_discovery.v1 import discovery_pb2 as pb

LATE_S = 0.9
"""Tolerated delay of a report that ownership was lost: enough for a busy machine, and less than the differences that
the cases test."""
Renewal = Callable[[pb.RenewOwnershipRequest], Awaitable[pb.RenewOwnershipResponse | bytes]]


def response(seconds: float | None, *, is_sharded: bool = True) -> pb.RenewOwnershipResponse:
    message = pb.RenewOwnershipResponse(sharded=is_sharded)
    if seconds is not None:
        message.valid_for.FromTimedelta(timedelta(seconds=seconds))
    return message


def owned(seconds: float | None) -> Renewal:
    async def renew(_: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse:
        return response(seconds)

    return renew


async def unanswered(_: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse:
    await asyncio.sleep(60)
    raise Abort(grpc.StatusCode.UNAVAILABLE)


async def refused(_: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse:
    raise Abort(grpc.StatusCode.UNAVAILABLE, "restarting")


def once(first: pb.RenewOwnershipResponse, then: Renewal) -> Renewal:
    answered = False

    async def renew(request: pb.RenewOwnershipRequest) -> pb.RenewOwnershipResponse | bytes:
        nonlocal answered
        if answered:
            return await then(request)
        answered = True
        return first

    return renew
