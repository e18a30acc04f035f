// The Fleet with which the conformance kit tests this client.
import { createInterface } from "node:readline";
import { CoreV1Api } from "@kubernetes/client-node";
import { DiscoveryClient, Fleet, StatusError, type EngagedCluster } from "../src/index.js";

interface Running {
  cluster: EngagedCluster;
  verb?: string;
  commanded: Promise<void>;
  command: (verb: string) => void;
}

const environment = process.env;
const stop = new AbortController();
const running = new Map<string, Running[]>();
const print = (event: string, cluster: string, fields: object) => console.log(JSON.stringify({ event, cluster, ...fields }));

async function work(cluster: EngagedCluster): Promise<void> {
  const { name, signal } = cluster;
  const { uid } = cluster.current;
  const handler = { cluster } as Running;
  handler.commanded = new Promise((resolve) => {
    handler.command = (verb) => {
      handler.verb = verb;
      resolve();
    };
  });
  running.set(name, [...(running.get(name) ?? []), handler]);
  print("BEGIN", name, { uid });
  const ended = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  await Promise.race([ended, handler.commanded]);
  if (!handler.verb) {
    print("SIGNALED", name, { uid });
    if ("CONFORMANCE_LINGER" in environment) await handler.commanded;
  }
  running.set(name, running.get(name)!.filter((each) => each !== handler));
  print("END", name, { uid });
  if (handler.verb === "fail") throw new Error("scripted");
}

/** Send a request with an API client. Return its error, or an empty string if it succeeded. */
async function request(cluster: EngagedCluster): Promise<string> {
  try {
    await (await cluster.kubeConfig()).makeApiClient(CoreV1Api).listNamespace();
    return "";
  } catch (error) {
    return String(error);
  }
}

async function execute(verb: string, name: string): Promise<void> {
  const handler = running.get(name)?.[0];
  if (verb === "request") return print("ANSWERED", name, { code: await request(handler!.cluster) });
  if (verb !== "credential") return handler?.command(verb);
  try {
    const { token, server, actAs } = await handler!.cluster.credential.access();
    print("CREDENTIAL", name, { token, server, as: actAs?.user ?? "" });
  } catch (error) {
    print("CREDENTIAL", name, { code: error instanceof StatusError ? error.code : String(error) });
  }
}

export async function runFleet(): Promise<void> {
  const fleet = new Fleet(new DiscoveryClient(), {
    heartbeatIntervalMs: Number(environment.CONFORMANCE_HEARTBEAT_S) * 1000,
    includeKubeconfigs: "CONFORMANCE_KUBECONFIGS" in environment,
    subscriber: environment.CONFORMANCE_SUBSCRIBER ?? "",
    signal: stop.signal,
  });
  createInterface(process.stdin).on("line", (line) => {
    const [verb = "", name = ""] = line.split(" ");
    if (verb === "stop") stop.abort();
    else void execute(verb, name);
  });
  await fleet.run(work);
}
