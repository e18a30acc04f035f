"""Projects as a real server sends them: 1.8 kB, more than half of it in fields that the daemon ignores."""

MARK = "bench-mark"
"""The label that identifies a write."""

_MANAGED = (
    '{"manager":"milo-controller-manager","operation":"Update","apiVersion":"resourcemanager.miloapis.com/v1alpha1",'
    '"time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:finalizers":{".":{},'
    '"v:\\"resourcemanager.miloapis.com/project-controller\\"":{}},"f:labels":{".":{},"f:bench-mark":{},"f:env":{},'
    '"f:region":{},"f:resourcemanager.miloapis.com/organization-name":{},"f:tier":{}}},"f:spec":{".":{},"f:ownerRef":{'
    '".":{},"f:kind":{},"f:name":{}}}}},{"manager":"milo-controller-manager","operation":"Update","apiVersion":'
    '"resourcemanager.miloapis.com/v1alpha1","time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{'
    '"f:status":{".":{},"f:conditions":{".":{},"k:{\\"type\\":\\"Ready\\"}":{".":{},"f:lastTransitionTime":{},'
    '"f:message":{},"f:observedGeneration":{},"f:reason":{},"f:status":{},"f:type":{}}}}},"subresource":"status"}'
)
_PROJECT = (
    '{"apiVersion":"resourcemanager.miloapis.com/v1alpha1","kind":"Project","metadata":{"name":"%(name)s",'
    '"uid":"%(uid)s","resourceVersion":"%(version)d","generation":1,"creationTimestamp":"2026-01-01T00:00:00Z",'
    '"labels":{"resourcemanager.miloapis.com/organization-name":"%(organization)s","env":"%(env)s","tier":"%(tier)s",'
    '"region":"%(region)s","bench-mark":"%(mark)s"},"finalizers":["resourcemanager.miloapis.com/project-controller"],'
    '"managedFields":[' + _MANAGED.replace("%", "%%") + ']},"spec":{"ownerRef":{"kind":"Organization",'
    '"name":"%(organization)s"}},"status":{"conditions":[{"type":"Ready","status":"%(ready)s","reason":"Ready","message":'
    '"The project is ready","lastTransitionTime":"2026-01-01T00:00:00Z","observedGeneration":1}]}}'
)
_PROJECT_KIND = b'resourcemanager.miloapis.com/v1alpha1","kind":"Project"'
_CONTROL_PLANE_KIND = b'infrastructure.miloapis.com/v1alpha1","kind":"ProjectControlPlane"'


def name(index: int) -> str:
    return f"project-{index:06d}"


def labels(index: int, mark: str) -> dict[str, str]:
    return {
        "resourcemanager.miloapis.com/organization-name": f"organization-{index % 97:02d}",
        "env": ("prod", "staging", "dev")[index % 3],
        "tier": ("gold", "silver", "bronze", "free")[index % 4],
        "region": ("eu-west", "eu-north", "us-east", "us-west", "ap-south")[index % 5],
        MARK: mark,
    }


def body(index: int, *, uid: str = "", version: int = 0, mark: str = "", is_ready: bool = True) -> bytes:
    label = labels(index, mark)
    return (
        _PROJECT
        % {
            "name": name(index),
            "uid": uid,
            "version": version,
            "organization": label["resourcemanager.miloapis.com/organization-name"],
            "env": label["env"],
            "tier": label["tier"],
            "region": label["region"],
            "mark": mark,
            "ready": is_ready,
        }
    ).encode()


def control_plane(index: int, *, uid: str, version: int, mark: str) -> bytes:
    """Return a project's ProjectControlPlane: of a similar size, with the project's UID and owner in its metadata."""
    organization = labels(index, mark)["resourcemanager.miloapis.com/organization-name"]
    metadata = f"""\
"annotations":{{"resourcemanager.miloapis.com/owner-name":"{organization}"}},\
"labels":{{"resourcemanager.miloapis.com/project-uid":"{uid}","""
    return (
        body(index, uid=uid, version=version, mark=mark)
        .replace(_PROJECT_KIND, _CONTROL_PLANE_KIND, 1)
        .replace(b'"labels":{', metadata.encode(), 1)
        .replace(b'"type":"Ready"', b'"type":"ControlPlaneReady"', 1)
    )
