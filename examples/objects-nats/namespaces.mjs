// Follows the namespaces of all projects, with nothing but a NATS client.
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const connection = await connect({ servers: process.env.NATS_URL ?? "nats://localhost:4222" });
const manager = await jetstreamManager(connection);
const which = async () => `${(await manager.streams.info("milo")).created} ${connection.info.server_id}`;
const filter_subjects = ["milo.objects.*.*.core.namespaces.>", "milo.publisher"];
for (;;) { // once for each stream: a later one has other sequences
  const stream = await which();
  const known = new Map(); // of each project: the epoch of its scope, and its namespaces
  const consumer = await jetstream(connection).consumers.get("milo", { filter_subjects });
  const messages = await consumer.consume();
  let heard = new Date();
  const timer = setInterval(async () => {
    if (Date.now() - heard > 30_000) console.log("STALE: no publisher has been heard since", heard);
    if ((await which().catch(() => stream)) !== stream) messages.stop();
  }, 5_000);
  for await (const message of messages) {
    heard = message.time;
    if (message.subject === "milo.publisher") continue;
    const [, , source, name, , , , object] = message.subject.split(".").map(decodeURIComponent);
    const project = source === "_" ? name : `${source}#${name}`;
    const scope = known.get(project) ?? known.set(project, { epoch: -1, namespaces: new Map() }).get(project);
    const { namespaces } = scope;
    const state = message.headers.get("Milo-State"), epoch = Number(message.headers.get("Milo-Epoch"));
    if (epoch < scope.epoch) continue; // of a scope that has ended
    if (state) {
      scope.epoch = epoch;
      for (const [key, of] of namespaces) if (of.epoch < epoch || state === "ENDED") namespaces.delete(key);
    } else if (message.headers.get("Milo-Gone")) namespaces.delete(object);
    else namespaces.set(object, { epoch, ...message.json() });
    console.log(project, state || object, namespaces.size);
  }
  clearInterval(timer);
}
