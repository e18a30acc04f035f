// Maintains one ConfigMap in each project: creates it if it is missing, and reverts changes to it.
//
//   MILO_DISCOVERY_ADDRESS=unix:///run/milo-discovery/discovery.sock node operator.mjs
import { once } from "node:events";
import { CoreV1Api, ListWatch, Watch } from "@kubernetes/client-node";
import { DiscoveryClient, Fleet } from "@miloapis/discovery";

const NAMESPACE = "default";
const NAME = "greeting";

const ending = new AbortController();
process.once("SIGTERM", () => ending.abort()); // sent when the pod terminates

const fleet = new Fleet(new DiscoveryClient(), {
  signal: ending.signal,
  includeKubeconfigs: true,
  heartbeatIntervalMs: 10_000,
  onDisconnect: (error) => console.error(`stream broken, reconnecting: ${error.message}`),
});

async function keepGreeting(cluster) {
  console.log(`working in ${cluster.name}`);
  const config = await cluster.kubeConfig();
  const api = config.makeApiClient(CoreV1Api);
  const wanted = { metadata: { name: NAME, namespace: NAMESPACE }, data: { greeting: `Hello, ${cluster.name}` } };

  async function reconcile(found) {
    if (cluster.signal.aborted || found?.data?.greeting === wanted.data.greeting) return;
    if (!found) await api.createNamespacedConfigMap({ namespace: NAMESPACE, body: wanted });
    else await api.replaceNamespacedConfigMap({ name: NAME, namespace: NAMESPACE, body: { ...found, ...wanted, metadata: found.metadata } });
    console.log(`greeted ${cluster.name}`);
  }

  const list = () => api.listNamespacedConfigMap({ namespace: NAMESPACE, fieldSelector: `metadata.name=${NAME}` });
  const path = `/api/v1/namespaces/${NAMESPACE}/configmaps`;
  // makeInformer has no parameter for the field selector of the watch.
  const informer = new ListWatch(path, new Watch(config), list, false, undefined, `metadata.name=${NAME}`);
  // A failed reconcile is retried at the next event, or after the interval below.
  const attempt = (found) => reconcile(found).catch((error) => console.error(`${cluster.name}: ${error.message}`));
  informer.on("add", attempt);
  informer.on("update", attempt);
  informer.on("delete", () => attempt(undefined));
  informer.on("error", (error) => {
    if (cluster.signal.aborted) return;
    console.error(`${cluster.name}: the watch failed: ${error.message}`);
    setTimeout(() => cluster.signal.aborted || informer.start().catch(() => {}), 1000);
  });
  const again = setInterval(() => attempt(informer.get(NAME, NAMESPACE)), 5000);
  try {
    await informer.start();
    await attempt(informer.get(NAME, NAMESPACE));
    if (!cluster.signal.aborted) await once(cluster.signal, "abort");
  } finally {
    clearInterval(again);
    await informer.stop();
    console.log(`stopped working in ${cluster.name}`);
  }
}

await fleet.run(keepGreeting);
