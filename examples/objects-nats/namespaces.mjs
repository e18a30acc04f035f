// Follows the namespaces of all projects, with nothing but a NATS client.
import { jetstream } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const connection = await connect({ servers: process.env.NATS_URL ?? "nats://localhost:4222" });
const filter = "milo.objects.*.*.core.namespaces.>";
const consumer = await jetstream(connection).consumers.get("milo", { filter_subjects: filter });
const known = new Map(); // the namespaces of each project
for await (const message of await consumer.consume()) {
  const [, , , project, , , , name] = message.subject.split(".").map(decodeURIComponent);
  const namespaces = known.get(project) ?? known.set(project, new Map()).get(project);
  const state = message.headers?.get("Milo-State");
  if (state === "ENDED") known.delete(project);
  else if (message.headers?.get("Milo-Gone")) namespaces.delete(name);
  else if (!state) namespaces.set(name, message.json());
  console.log(project, state || name, namespaces.size);
}
