import assert from "node:assert/strict";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { create } from "@bufbuild/protobuf";
import type { DiscoveryClient } from "../src/client.js";
import { RenewOwnershipResponseSchema, WatchClustersResponseSchema } from "../src/gen/milo/discovery/v1/discovery_pb.js";
import { Watch } from "../src/watch.js";
import { engaged } from "./daemon.js";

const BATCHES = 200_000;

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

function heapBytes(): number {
  collectGarbage();
  return process.memoryUsage().heapUsed;
}

test(`a watch does not leak memory over ${BATCHES} batches`, async () => {
  const stop = new AbortController();
  const sizes: number[] = [];

  async function* batches() {
    const clusters = [engaged("a")];
    yield create(WatchClustersResponseSchema, { events: clusters, revision: "0", synced: true, reset: true });
    for (let number = 1; number <= BATCHES; number += 1) {
      if (number % (BATCHES / 4) === 0) sizes.push(heapBytes());
      yield create(WatchClustersResponseSchema, { revision: `${number}`, previousRevision: `${number - 1}`, synced: true });
    }
    stop.abort();
  }

  const stream = { on: () => {}, cancel: () => {}, [Symbol.asyncIterator]: batches };
  const client = { connect: () => ({ close: () => {} }), openStream: () => stream };
  let events = 0;
  for await (const _ of new Watch(client as unknown as DiscoveryClient, { signal: stop.signal })) events += 1;
  assert.equal(events, 1);
  const grown = sizes.at(-1)! - sizes[0]!;
  assert.ok(grown < 4 << 20, `the heap grew by ${grown} bytes: ${sizes.join(", ")}`);
});

test("a watch goes on when its ownership was renewed just after it expired", { timeout: 30_000 }, async () => {
  const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
  let renewals = 0;
  let streams = 0;

  async function* batches() {
    streams += 1;
    yield create(WatchClustersResponseSchema, { events: [engaged("a")], revision: "0", synced: true, reset: true, sharded: true });
    await wait(600); // later than the first ownership ends, and sooner than it is renewed
    yield create(WatchClustersResponseSchema, { revision: "0", previousRevision: "0", synced: true, sharded: true });
    await wait(60_000);
  }

  const call = async () => {
    renewals += 1;
    if (renewals > 1) await wait(600); // sent after half of the first ownership
    const validFor = renewals > 1 ? { seconds: 100n, nanos: 0 } : { seconds: 0n, nanos: 400e6 };
    return create(RenewOwnershipResponseSchema, { sharded: true, validFor });
  };
  const stream = { on: () => {}, cancel: () => {}, [Symbol.asyncIterator]: batches };
  const client = { call, connect: () => ({ close: () => {} }), openStream: () => stream };
  const events: string[] = [];
  for await (const event of new Watch(client as unknown as DiscoveryClient, { onDisconnect: () => {} })) {
    events.push(event.type === "DISENGAGED" ? event.reason : event.type);
    if (events.length === 3) break;
  }
  assert.deepEqual(events, ["ENGAGED", "OWNERSHIP_LOST", "ENGAGED"]);
  assert.equal(streams, 2);
});

test("a release of a cluster that is not engaged is not sent", async () => {
  const client = { call: () => assert.fail("a call was sent") };
  await new Watch(client as unknown as DiscoveryClient, { subscriber: "s" }).release("a");
});
