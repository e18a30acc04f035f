"""The infrastructure cluster: Secrets, and TokenRequest for service accounts."""

from datetime import UTC, datetime

import msgspec
from aiohttp import web

from milo_sandbox import answers, refusals
from milo_sandbox.api import Api
from milo_sandbox.resources import SECRETS, SERVICE_ACCOUNTS, Document
from milo_sandbox.rights import Action, SubjectRights
from milo_sandbox.tokens import BoundTo, Tokens

_LEAST_S = 600


class Infrastructure:
    def __init__(self, api: Api, *, tokens: Tokens, rights: SubjectRights) -> None:
        self.api = api
        self._tokens = tokens
        self._rights = rights
        self.requested = 0
        """The number of tokens issued."""

    def secret_names(self) -> list[str]:
        return [record.name for record in self.api.store[SECRETS]]

    async def answer(self, request: web.BaseRequest, segments: list[str], subject: str) -> web.StreamResponse:
        match segments:
            case ("api", "v1", "namespaces", namespace, "serviceaccounts", name, "token") if request.method == "POST":
                self._rights.demand(
                    subject,
                    Action(
                        verb="create",
                        group="",
                        resource="serviceaccounts",
                        subresource="token",
                        name=name,
                        namespace=namespace,
                    ),
                )
                return answers.document(self._token(await request.json(), namespace, name), 201)
        return await self.api.answer(request, segments, subject)

    def holds(self, bound: BoundTo) -> bool:
        """Return whether the Secret that a token is bound to exists."""
        record = self.api.store[SECRETS].get(bound.name, bound.namespace)
        return record is not None and record.uid == bound.uid

    def _token(self, question: Document, namespace: str, name: str) -> Document:
        self.api.store.get(SERVICE_ACCOUNTS, name, namespace)
        spec = question["spec"]
        life = spec.get("expirationSeconds", 3600)
        if life < _LEAST_S:
            raise refusals.bad_request(
                f"spec.expirationSeconds: Invalid value: {life}: may not specify a duration less than 10 minutes"
            )
        bound = None
        if reference := spec.get("boundObjectRef"):
            bound = BoundTo(namespace=namespace, name=reference["name"], uid=reference["uid"])
            if not self.holds(bound):
                raise refusals.not_found(SECRETS, bound.name)
        token = self._tokens.issue(
            f"system:serviceaccount:{namespace}:{name}", life=life, audiences=spec.get("audiences") or (), bound=bound
        )
        self.requested += 1
        ends = datetime.fromtimestamp(self._tokens.claims(token).exp, UTC)
        return {
            **question,
            "metadata": {},
            "status": {"token": token, "expirationTimestamp": msgspec.to_builtins(ends)},
        }
