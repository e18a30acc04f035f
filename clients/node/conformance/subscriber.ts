// The subscriber with which the conformance kit tests this client.
import { createInterface } from "node:readline";
import { DisengageReason, DiscoveryClient, StatusError, type Credential, type Event, type Kubeconfig } from "../src/index.js";
import { runFleet } from "./fleet.js";

const environment = process.env;
if ("CONFORMANCE_FLEET" in environment) {
  await runFleet();
  process.exit();
}
const subscriber = environment.CONFORMANCE_SUBSCRIBER ?? "";
const stop = new AbortController();
const credentials = new Map<string, Credential>();

const print = (line: Record<string, unknown>) => console.log(JSON.stringify(line));
const text = (kubeconfig: Kubeconfig) => new TextDecoder().decode(kubeconfig.kubeconfig);
const code = (error: unknown) => (error instanceof StatusError ? error.code : String(error));

function printEvent(event: Event): void {
  const { name, uid, endpoint, suspended, draining } = event.cluster;
  const reason = event.type === "DISENGAGED" ? event.reason : "";
  const kubeconfig = "kubeconfig" in event && event.kubeconfig ? text(event.kubeconfig) : "";
  const drains = draining ? DisengageReason[draining.reason] : "";
  print({ event: event.type, cluster: name, uid, endpoint, suspended, draining: drains, reason, kubeconfig });
}

const client = new DiscoveryClient();
const watch = client.watch({
  heartbeatIntervalMs: Number(environment.CONFORMANCE_HEARTBEAT_S) * 1000,
  labelSelector: environment.CONFORMANCE_LABEL_SELECTOR ?? "",
  includeKubeconfigs: "CONFORMANCE_KUBECONFIGS" in environment,
  subscriber,
  signal: stop.signal,
});

async function follow(): Promise<void> {
  try {
    for await (const event of watch) {
      if (event.type === "ENGAGED") credentials.set(event.cluster.name, watch.credential(event));
      printEvent(event);
    }
  } catch (error) {
    print({ event: "FATAL", code: code(error) });
  }
}

async function execute(verb: string, name: string): Promise<void> {
  if (verb === "release") await watch.release(name);
  if (verb === "kubeconfig") print({ event: "ISSUED", cluster: name, kubeconfig: text(await client.issueKubeconfig(name)) });
  if (verb === "credential") {
    print({ event: "CREDENTIAL", cluster: name, token: (await credentials.get(name)?.access())?.token });
  }
}

const following = follow();
for await (const line of createInterface(process.stdin)) {
  const [verb = "", name = ""] = line.split(" ");
  if (verb === "stop") break;
  await execute(verb, name).catch((error: unknown) => {
    print({ event: verb === "credential" ? "CREDENTIAL" : "FAILED", cluster: name, code: code(error) });
  });
}
stop.abort();
await following;
if (subscriber) await client.endSubscription(subscriber);
process.exit();
