"""All seeded bugs."""

from tests.tooling.mutants import client, credentials, registry, server, sharding, sources

MUTANTS = (
    *registry.MUTANTS,
    *sources.MUTANTS,
    *credentials.MUTANTS,
    *server.MUTANTS,
    *sharding.MUTANTS,
    *client.MUTANTS,
)
