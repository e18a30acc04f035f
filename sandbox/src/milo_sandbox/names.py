"""Readable names of projects, with organizations and labels."""

from collections.abc import Iterator
from itertools import count
from random import Random

_FIRST = (
    "amber", "ample", "arctic", "autumn", "bold", "brave", "breezy", "bright", "calm", "cedar", "clever", "copper",
    "coral", "cosmic", "crisp", "curious", "dapper", "daring", "deep", "eager", "early", "ember", "fabled", "fern",
    "gentle", "gilded", "golden", "grand", "hazel", "hidden", "honest", "humble", "indigo", "ivory", "jade", "jolly",
    "keen", "kindly", "lively", "lucky", "lunar", "maple", "mellow", "merry", "misty", "mossy", "nimble", "noble",
    "opal", "patient", "pearl", "plucky", "quiet", "rapid", "ruby", "rustic", "silver", "solar", "steady", "sunny",
    "swift", "tidal", "velvet", "vivid", "warm", "wild", "windy", "witty", "young", "zesty",
)  # fmt: skip
_SECOND = (
    "acorn", "anchor", "antler", "badger", "bay", "beacon", "birch", "bison", "brook", "canyon", "cliff", "cloud",
    "comet", "condor", "coyote", "crane", "creek", "delta", "dune", "eagle", "falcon", "fjord", "forest", "fox",
    "garden", "geyser", "glacier", "grove", "harbor", "hawk", "heron", "island", "kestrel", "lagoon", "lantern",
    "lark", "lynx", "marten", "meadow", "meteor", "nebula", "oasis", "ocelot", "orchard", "osprey", "otter", "owl",
    "panther", "pebble", "pine", "plover", "pond", "prairie", "puffin", "quail", "raven", "reef", "ridge", "river",
    "robin", "sparrow", "spruce", "summit", "swallow", "thicket", "tiger", "trout", "valley", "walrus", "willow",
)  # fmt: skip
_ORGANIZATIONS = (
    "acme",
    "bluebird-labs",
    "fernweh",
    "halcyon",
    "lighthouse",
    "northwind",
    "quartz-works",
    "tumbleweed",
)
_LABELS = {
    "env": ("prod", "prod", "staging", "dev", "dev"),
    "tier": ("gold", "silver", "silver", "bronze"),
    "region": ("eu-west", "eu-north", "us-east", "us-west", "ap-south"),
}


class Names:
    """A source of random names: the same seed gives the same names."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._fresh = self._all()

    def project(self) -> str:
        """Return a new project name."""
        return next(self._fresh)

    def organization(self) -> str:
        return self._random.choice(_ORGANIZATIONS)

    def labels(self) -> dict[str, str]:
        return {key: self._random.choice(values) for key, values in _LABELS.items()}

    def label(self) -> tuple[str, str]:
        """Return a random label."""
        key = self._random.choice(tuple(_LABELS))
        return key, self._random.choice(_LABELS[key])

    def _all(self) -> Iterator[str]:
        pairs = [f"{first}-{second}" for first in _FIRST for second in _SECOND]
        self._random.shuffle(pairs)
        yield from pairs
        for number in count(2):
            yield from (f"{pair}-{number}" for pair in pairs)
