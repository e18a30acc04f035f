// Prints the clusters of projects as they are engaged, updated and disengaged:
//
//   MILO_DISCOVERY_ADDRESS=unix:///run/milo-discovery/discovery.sock node subscriber.mjs
import { hostname } from "node:os";
import { DiscoveryClient, StatusError } from "@miloapis/discovery";

const ending = new AbortController();
process.once("SIGTERM", () => ending.abort()); // sent when the pod terminates

const watch = new DiscoveryClient().watch({
  signal: ending.signal,
  heartbeatIntervalMs: Number(process.env.HEARTBEAT_S || 10) * 1000,
  subscriber: `${hostname()}/${process.pid}`,
  onDisconnect: (error) => console.error(`stream broken, reconnecting: ${error.message}`),
});
try {
  for await (const event of watch) {
    const { type, cluster, reason, message } = event;
    const why = type === "DISENGAGED" ? [reason, message] : [cluster.endpoint];
    console.log([type.padEnd(10), cluster.name, ...why].filter((word) => word && word !== "UNSPECIFIED").join("  "));
    // A draining cluster is about to be disengaged. Stop the work on it (none in this example), then release it. If the release
    // does not reach the daemon, it sends the cluster again on the next stream.
    if (cluster.draining && type !== "DISENGAGED") {
      watch.release(cluster.name).catch((error) => console.error(`cluster ${cluster.name} was not released: ${error.message}`));
    }
  }
} catch (error) {
  if (!(error instanceof StatusError)) throw error;
  console.error(`subscription refused: ${error.message}`);
  process.exit(1);
}
