"""Operator, account and user of a NATS server that takes credentials files, as `nsc` makes them."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import nkeys
from nacl.signing import SigningKey


def _key(kind: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(bytes(SigningKey.generate()), kind))


def _token(issuer: nkeys.KeyPair, subject: str, name: str, claims: dict[str, Any]) -> str:
    content = {"iat": 1767225600, "iss": issuer.public_key.decode(), "sub": subject, "name": name, "nats": claims}
    identified = {**content, "jti": hashlib.sha256(json.dumps(content).encode()).hexdigest()}
    parts = [_encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, identified)]
    signed = ".".join(parts)
    return f"{signed}.{_encoded(issuer.sign(signed.encode()))}"


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def write_credentials(path: Path) -> dict[str, Any]:
    """Write a credentials file, and return the settings of a server that accepts it."""
    operator, account, system, user = (_key(kind) for kind in _KINDS)
    unlimited = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    jetstream = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    of = {pair: pair.public_key.decode() for pair in (operator, account, system, user)}
    accounts = {
        of[account]: _token(
            operator,
            of[account],
            "platform",
            {"type": "account", "version": 2, "limits": {**unlimited, **jetstream, "wildcards": True}},
        ),
        of[system]: _token(
            operator, of[system], "SYS", {"type": "account", "version": 2, "limits": {**unlimited, "wildcards": True}}
        ),
    }
    claims = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
    user_token = _token(account, of[user], "publisher", claims)
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return {
        "operator": _token(operator, of[operator], "operator", {"type": "operator", "version": 2}),
        "system_account": of[system],
        "resolver": "MEMORY",
        "resolver_preload": accounts,
    }


_KINDS = (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
