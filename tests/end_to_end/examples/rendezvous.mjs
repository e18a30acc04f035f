// Computes the owners and scores of test vectors by the definition in docs/sharding.md: node rendezvous.mjs VECTORS
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

function uniform(key, member) {
  const digest = createHash("blake2b512").update(`${key}\0${member}`).digest();
  return (Number(digest.readBigUInt64BE() >> 11n) + 0.5) / 2 ** 53;
}

const score = (key, member, weight) => -weight / Math.log(uniform(key, member));

function owner(key, members) {
  const scored = Object.entries(members).map(([member, weight]) => ({ member, score: score(key, member, weight) }));
  // Of equal scores, the member whose name sorts last, by code points.
  scored.sort((a, b) => a.score - b.score || Buffer.compare(Buffer.from(a.member), Buffer.from(b.member)));
  return scored.at(-1).member;
}

const vectors = JSON.parse(readFileSync(process.argv[2], "utf8"));
console.log(
  JSON.stringify({
    scores: vectors.scores.map(({ key, member, weight }) => ({
      uniform: uniform(key, member),
      score: score(key, member, weight),
    })),
    owners: vectors.owners.map(({ key }) => owner(key, vectors.members)),
  }),
);
