// Prints project clusters as they are engaged, updated and disengaged:
//
//   MILO_DISCOVERY_ADDRESS=unix:///run/milo-discovery/discovery.sock node subscriber.mjs
import { once } from "node:events";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { Fleet } from "./fleet.mjs";
import { Ownership } from "./ownership.mjs";

const ADDRESS = process.env.MILO_DISCOVERY_ADDRESS || "unix:///run/milo-discovery/discovery.sock";
const HEARTBEAT_S = Number(process.env.HEARTBEAT_S || 10);
const SUBSCRIBER = `${hostname()}/${process.pid}`;
const BACKOFF_MS = { first: 200, longest: 10_000 };
const { INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED, UNIMPLEMENTED, FAILED_PRECONDITION } = grpc.status;
const PERMANENT = new Set([INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED, UNIMPLEMENTED, FAILED_PRECONDITION]);

// A copy of this directory needs a copy of the proto file, and its path here.
const PROTO = fileURLToPath(new URL("../../proto", import.meta.url));
const definition = loader.loadSync("milo/discovery/v1/discovery.proto", {
  includeDirs: [PROTO],
  keepCase: true,
  enums: String,
  longs: String,
  defaults: true,
});
const { DiscoveryService } = grpc.loadPackageDefinition(definition).milo.discovery.v1;

const short = (word) => word?.replace(/^(TYPE|DISENGAGE_REASON)_/, "") ?? "";

function print({ type, cluster, reason, message }) {
  const why = type === "TYPE_DISENGAGED" ? [short(reason), message] : [cluster.endpoint];
  console.log([short(type).padEnd(10), cluster.name, ...why].filter(Boolean).join("  "));
}

// A cluster that drains is about to be disengaged. End your work on it, here none, and then release it. The daemon sends
// the cluster again on the next stream if the release did not reach it.
function release({ type, cluster }) {
  if (!cluster.draining || type === "TYPE_DISENGAGED") return;
  const { name, incarnation } = cluster;
  client.ReleaseCluster({ cluster: name, incarnation, subscriber: SUBSCRIBER }, (error) => {
    if (error) console.error(`${name} was not released: ${error.message}`);
  });
}

// Read one stream until it breaks, which always throws.
async function readStream(client, fleet, onBatch) {
  const stream = client.WatchClusters({
    resume_revision: fleet.open(),
    heartbeat_interval: { seconds: HEARTBEAT_S },
    confirm_releases: true,
    subscriber: SUBSCRIBER,
  });
  const stop = () => stream.cancel();
  ownership.once("lost", stop);
  // The daemon sends a heartbeat in every interval. After three missed ones the connection is dead.
  let silent = false;
  const watchdog = setTimeout(() => {
    silent = true;
    stream.cancel();
  }, 3 * HEARTBEAT_S * 1000);
  try {
    for await (const batch of stream) {
      watchdog.refresh();
      onBatch();
      if (batch.sharded) await ownership.begin();
      if (!ownership.held) throw new Error("the daemon does not own its clusters at present");
      for (const event of fleet.apply(batch)) {
        print(event);
        release(event);
      }
    }
    throw new Error("the daemon ended the stream");
  } catch (error) {
    throw silent ? new Error(`no heartbeat for ${3 * HEARTBEAT_S} s`) : error;
  } finally {
    clearTimeout(watchdog);
    ownership.off("lost", stop);
    stream.cancel();
  }
}

const client = new DiscoveryService(ADDRESS, grpc.credentials.createInsecure(), {
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1000, // the daemon is local: reconnect soon after it is back
  "grpc.enable_http_proxy": 0,
});
const fleet = new Fleet();
const call = (method, request, timeout) =>
  new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + timeout };
    client[method](request, options, (error, response) => (error ? reject(error) : resolve(response)));
  });
const ownership = new Ownership((timeout) => call("RenewOwnership", {}, timeout));
// End the work in all clusters: printing is all that there is here.
ownership.on("lost", () => {
  for (const event of fleet.loseOwnership()) print(event);
});
let pause = BACKOFF_MS.first;
for (;;) {
  if (!ownership.held) await once(ownership, "held");
  try {
    await readStream(client, fleet, () => (pause = BACKOFF_MS.first));
  } catch (error) {
    if (PERMANENT.has(error.code)) {
      console.error(`refused: ${error.message}`);
      process.exit(1);
    }
    const outcome = ownership.held ? "every cluster stays as it is" : "and the daemon does not own its clusters";
    console.error(`the stream broke, ${outcome}: ${error.message}`);
  }
  await sleep(pause * (0.5 + Math.random() / 2));
  pause = Math.min(2 * pause, BACKOFF_MS.longest);
}
