"""Errors of the API: as Kubernetes Status objects, or in plain text."""

from collections.abc import Sequence
from typing import Any

from milo_sandbox.resources import Cause, ResourceDefinition


class RefusalError(Exception):
    """A refused request; `document()` is the Status in the response."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        causes: Sequence[Cause] = (),
        retry_after: int | None = None,
        continue_token: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.causes = tuple(causes)
        self.retry_after = retry_after
        self._details = details or {}
        self._continue_token = continue_token

    def document(self) -> dict[str, Any]:
        details = dict(self._details)
        if self.causes:
            details["causes"] = [cause.document() for cause in self.causes]
        if self.retry_after is not None:
            details["retryAfterSeconds"] = self.retry_after
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": self._continue_token} if self._continue_token else {},
            "status": "Failure",
            "message": self.message,
            **({"reason": self.reason} if self.reason else {}),
            **({"details": details} if details else {}),
            "code": self.code,
        }


def _about(resource: ResourceDefinition, name: str) -> dict[str, Any]:
    # Kubernetes puts the plural into details.kind.
    return {"name": name, "group": resource.group, "kind": resource.plural}


def bad_request(message: str) -> RefusalError:
    return RefusalError(400, "BadRequest", message)


def unauthorized() -> RefusalError:
    return RefusalError(401, "Unauthorized", "Unauthorized")


def undeletable_namespace(resource: ResourceDefinition, name: str) -> RefusalError:
    return forbidden(
        f'{resource.qualified} "{name}"', "this namespace may not be deleted", details=_about(resource, name)
    )


def forbidden(
    what: str, why: str, *, details: dict[str, Any] | None = None, causes: Sequence[Cause] = ()
) -> RefusalError:
    return RefusalError(403, "Forbidden", f"{what} is forbidden: {why}", details=details, causes=causes)


def namespace_terminating(resource: ResourceDefinition, name: str, namespace: str) -> RefusalError:
    cause = Cause(
        reason="NamespaceTerminating", message=f"namespace {namespace} is being terminated", field="metadata.namespace"
    )
    why = f"unable to create new content in namespace {namespace} because it is being terminated"
    return forbidden(f'{resource.qualified} "{name}"', why, details=_about(resource, name), causes=[cause])


def not_found(resource: ResourceDefinition, name: str) -> RefusalError:
    return RefusalError(404, "NotFound", f'{resource.qualified} "{name}" not found', details=_about(resource, name))


def internal(message: str) -> RefusalError:
    return RefusalError(500, "InternalError", f"Internal error occurred: {message}")


def own_failure(message: str) -> RefusalError:
    """Return the 500 that a server sends for a watch with an invalid version."""
    return RefusalError(500, "", message)


def method_not_allowed() -> RefusalError:
    return RefusalError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def already_exists(resource: ResourceDefinition, name: str) -> RefusalError:
    return RefusalError(
        409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', details=_about(resource, name)
    )


def conflict(resource: ResourceDefinition, name: str, why: str) -> RefusalError:
    return RefusalError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}',
        details=_about(resource, name),
    )


def apply_conflict(causes: Sequence[Cause]) -> RefusalError:
    """Return the 409 of an apply that would change fields of other managers."""
    count = f"{len(causes)} conflict{'s' if len(causes) > 1 else ''}"
    return RefusalError(409, "Conflict", f"Apply failed with {count}: {_sentence(causes)}", causes=causes)


def gone(message: str, *, continue_token: str = "") -> RefusalError:
    return RefusalError(410, "Expired", message, continue_token=continue_token)


def unsupported_media_type(given: str, supported: Sequence[str]) -> RefusalError:
    return RefusalError(
        415,
        "UnsupportedMediaType",
        f"the body of the request was in an unknown format ({given}) - accepted media types include: "
        + ", ".join(supported),
    )


def invalid(resource: ResourceDefinition, name: str, causes: Sequence[Cause], *, kind: str = "") -> RefusalError:
    """Return a 422. `kind` is reported in place of the resource's kind."""
    kind = kind or resource.kind
    details = {"name": name, "group": resource.group, "kind": kind}
    what = f"{kind}.{resource.group}" if resource.group else kind
    return RefusalError(
        422, "Invalid", f'{what} "{name}" is invalid: {_sentence(causes)}', details=details, causes=causes
    )


def invalid_options(causes: Sequence[Cause]) -> RefusalError:
    details = {"group": "meta.k8s.io", "kind": "ListOptions"}
    message = f'ListOptions.meta.k8s.io "" is invalid: {_sentence(causes)}'
    return RefusalError(422, "Invalid", message, details=details, causes=causes)


def missing_field_manager() -> RefusalError:
    cause = Cause(
        reason="FieldValueRequired", message="Required value: is required for apply patch", field="fieldManager"
    )
    details = {"group": "meta.k8s.io", "kind": "PatchOptions"}
    message = f'PatchOptions.meta.k8s.io "" is invalid: {_sentence([cause])}'
    return RefusalError(422, "Invalid", message, details=details, causes=[cause])


def version_too_large(wanted: int, current: int) -> RefusalError:
    return RefusalError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {wanted}, current: {current}",
        causes=(Cause(reason="ResourceVersionTooLarge", message="Too large resource version"),),
        retry_after=1,
    )


def too_many_requests(message: str, retry_after: int) -> RefusalError:
    return RefusalError(429, "TooManyRequests", message, retry_after=retry_after)


def _sentence(causes: Sequence[Cause]) -> str:
    texts = [f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


class PlainError(Exception):
    """A plain-text error response, which is not a Status object."""

    def __init__(self, code: int, text: str, *, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.retry_after = retry_after


def no_such_path() -> PlainError:
    return PlainError(404, "404 page not found\n")
