// Lists the namespaces that a kubeconfig gives access to, by Kubernetes' client for Node: once, and for each line on stdin.
import { createInterface } from "node:readline";
import { CoreV1Api, KubeConfig } from "@kubernetes/client-node";

const config = new KubeConfig();
config.loadFromFile(process.argv[2]);
const api = config.makeApiClient(CoreV1Api);

async function list() {
  const found = await api.listNamespace();
  console.log(200, found.items.map((each) => each.metadata.name).join(" "));
}

await list();
for await (const _ of createInterface({ input: process.stdin })) {
  await list();
}
