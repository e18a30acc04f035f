"""Settings of credential issuers: a name, a type, and the settings of the type."""

from collections.abc import Mapping

from milo_discoveryd.credentials.issuers.settings import ISSUERS, IssuerSettings
from milo_discoveryd.schema.fields import Complaint, InvalidError, parse_group


def parse_issuer(value: object) -> IssuerSettings:
    """Parse an item of `kubeconfigs.issuers`. Its `type` decides which settings it may have."""
    assert isinstance(value, Mapping)
    if "type" not in value:
        raise ValueError("type is missing")
    try:
        issuer_type = ISSUERS.load(str(value["type"]))
    except LookupError as error:
        raise InvalidError([Complaint(("type",), value["type"], str(error))]) from None
    return parse_group(issuer_type, value)
