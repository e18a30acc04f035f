import assert from "node:assert/strict";
import { test } from "node:test";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { RenewOwnershipResponseSchema } from "../src/gen/milo/discovery/v1/discovery_pb.js";
import { Ownership } from "../src/ownership.js";

async function isHeldAfter(validFor: MessageInitShape<typeof RenewOwnershipResponseSchema>["validFor"]): Promise<boolean> {
  const response = create(RenewOwnershipResponseSchema, validFor ? { sharded: true, validFor } : { sharded: true });
  const ownership = new Ownership(() => Promise.resolve(response));
  await ownership.begin();
  ownership.close();
  return ownership.isHeld;
}

for (const [seconds, nanos] of [[60n, 0], [0n, 999_999_999]] as const) {
  test(`ownership is held for a duration of ${seconds} s and ${nanos} ns`, async () => {
    assert.equal(await isHeldAfter({ seconds, nanos }), true);
  });
}

for (const [seconds, nanos] of [[-10n, 0], [2n ** 63n - 1n, 0], [-(2n ** 63n), 0], [10n, 2_000_000_000], [10n, -1]] as const) {
  test(`an invalid duration of ${seconds} s and ${nanos} ns gives no ownership`, async () => {
    assert.equal(await isHeldAfter({ seconds, nanos }), false);
  });
}

test("a response without a duration gives no ownership", async () => {
  assert.equal(await isHeldAfter(undefined), false);
});
