"""Kinds: which objects are followed, and which of their fields are kept. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import msgspec

from milo_kube.label_selector import Selector, SelectorError, parse
from milo_kube.reflect.wire import Decoder
from milo_kube.resource_paths import ResourcePaths
from milo_objects.projection import SeenObject, is_of_metadata, object_decoder


class Kind(msgspec.Struct, frozen=True, dict=True, rename="camel", forbid_unknown_fields=True):
    """A kind of object to follow in all clusters, and the fields that are kept. Raises ValueError.

    For example `Kind("v1/namespaces", ["metadata.labels", "status.phase"])`.
    """

    resource: str
    """GROUP/VERSION/PLURAL, or VERSION/PLURAL for the core group."""
    fields: Sequence[str] = ()
    """The dotted paths of the fields; without any, objects are kept with what identifies them. `[*]` stands for the
    elements of a list: `spec.placements[*].cityCodes`."""
    label_selector: str = ""
    """Only the objects with these labels. It is evaluated here, so that an object that leaves the selector is told
    apart from a deleted one."""
    secrets: bool = False
    """Required for Secrets: their annotations alone may have their data."""

    def __post_init__(self) -> None:
        if isinstance(self.fields, str):
            raise TypeError(f"{self.resource}: fields={self.fields!r} is a string: write [{self.fields!r}]")
        msgspec.structs.force_setattr(self, "fields", tuple(self.fields))
        if self.paths.group == "" and self.paths.plural == "secrets" and not self.secrets:
            raise ValueError(
                f"{self.resource}: Secrets are not followed unless their kind has secrets=True (secrets: true): their "
                "annotations alone may have their data"
            )
        try:
            _ = self.decoder, self.selector
        except SelectorError as error:
            raise ValueError(f"{self.resource}: the label selector {self.label_selector!r}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{self.resource}: {error}") from None

    def __str__(self) -> str:
        return f"{self.resource} ({self.label_selector})" if self.label_selector else self.resource

    @cached_property
    def paths(self) -> ResourcePaths:
        return ResourcePaths(self.resource)

    @cached_property
    def selector(self) -> Selector:
        return parse(self.label_selector)

    # --- for list and watch ---

    @cached_property
    def decoder(self) -> Decoder[msgspec.Raw, SeenObject]:
        return object_decoder(self.fields, self.selector)

    @cached_property
    def metadata_only(self) -> bool:
        """Whether the API server is asked for the metadata alone."""
        return all(map(is_of_metadata, self.fields))

    @property
    def path(self) -> str:
        return self.paths.collection()

    @property
    def query(self) -> list[tuple[str, str]]:
        return []
