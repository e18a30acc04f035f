import assert from "node:assert/strict";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { create } from "@bufbuild/protobuf";
import type { DiscoveryClient } from "../src/client.js";
import { WatchClustersResponseSchema } from "../src/gen/milo/discovery/v1/discovery_pb.js";
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

test("a release of a cluster that is not engaged is not sent", async () => {
  const client = { call: () => assert.fail("a call was sent") };
  await new Watch(client as unknown as DiscoveryClient, { subscriber: "s" }).release("a");
});
