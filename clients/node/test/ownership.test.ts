import assert from "node:assert/strict";
import { test } from "node:test";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { RenewOwnershipResponseSchema } from "../src/gen/milo/discovery/v1/discovery_pb.js";
import { Ownership } from "../src/ownership.js";
import { until } from "./daemon.js";

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

const valid = (ms: number) => create(RenewOwnershipResponseSchema, { sharded: true, validFor: { seconds: 0n, nanos: ms * 1e6 } });

test("an ownership that expired before its renewal arrived is lost, and regained when that is acknowledged", async () => {
  let renewals = 0;
  let changes = 0;
  const renew = async () => {
    renewals += 1;
    if (renewals > 1) await new Promise((resolve) => setTimeout(resolve, 300));
    return valid(renewals === 1 ? 200 : 999);
  };
  const ownership = new Ownership(renew, () => (changes += 1));
  await ownership.begin();
  assert.equal(ownership.isHeld, true);
  await until(() => renewals === 2, "the second renewal is sent");
  const before = changes;
  await until(() => changes > before, "the second renewal has arrived");
  assert.equal(ownership.isHeld, false);
  ownership.acknowledgeLoss();
  assert.equal(ownership.isHeld, true);
  ownership.close();
});

test("no renewal is sent after the end, and none keeps the process", async () => {
  let renewals = 0;
  const ownership = new Ownership(() => {
    renewals += 1;
    return Promise.resolve(valid(999));
  });
  await ownership.begin();
  ownership.close();
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(process.getActiveResourcesInfo().filter((each) => each === "Timeout"), []);
  assert.equal(renewals, 1);
});

test("a response without a duration gives no ownership", async () => {
  assert.equal(await isHeldAfter(undefined), false);
});
