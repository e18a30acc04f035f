"""The fields of upstream objects that modes read; msgspec skips all others when it decodes.

Names are as in the JSON.
"""

import msgspec

# ruff: noqa: N815


class ObjectOwner(msgspec.Struct, gc=False):
    kind: str = ""
    name: str = ""


class Metadata(msgspec.Struct, gc=False):
    name: str
    uid: str
    resourceVersion: str
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creationTimestamp: str | None = None
    deletionTimestamp: str | None = None
    namespace: str = ""
    finalizers: list[str] | None = None


class Condition(msgspec.Struct, gc=False):
    type: str
    status: str
    reason: str | None = None
    message: str | None = None
    lastTransitionTime: str | None = None


class Spec(msgspec.Struct, gc=False):
    ownerRef: ObjectOwner | None = None


class SuspensionInfo(msgspec.Struct, gc=False):
    reason: str = ""
    suspendedAt: str = ""
    reinstateAuthority: str = ""


class Status(msgspec.Struct, gc=False):
    conditions: list[Condition] | None = None
    suspensions: list[SuspensionInfo] | None = None


class KubeObject(msgspec.Struct, gc=False):
    """An upstream object. A mode that reads more fields derives its own type from this one."""

    metadata: Metadata
    spec: Spec | None = None
    status: Status | None = None

    def condition(self, kind: str) -> Condition | None:
        conditions = None if self.status is None else self.status.conditions
        for condition in conditions or ():
            if condition.type == kind:
                return condition
        return None
