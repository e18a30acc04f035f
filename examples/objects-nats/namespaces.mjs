// Follows the namespaces of all projects, with nothing but a NATS client and the permissions of docs/objects-nats.md.
import { setTimeout as sleep } from "node:timers/promises";
import { jetstream } from "@nats-io/jetstream";
import { connect, createInbox } from "@nats-io/transport-node";

const { NATS_URL: servers = "nats://localhost:4222", NATS_USER: user, NATS_PASSWORD: pass } = process.env;
const inboxPrefix = "_INBOX_reader";
const connection = await connect({ servers, user, pass, inboxPrefix, maxReconnectAttempts: -1 });

async function read(filter_subjects) { // from the first message, with a single filter, which NATS can permit
  const options = { filter_subjects, deliver_prefix: createInbox(inboxPrefix) };
  for (;;) {
    try {
      return await (await jetstream(connection).consumers.getPushConsumer("milo", options)).consume();
    } catch (problem) {
      console.log("STALE:", problem.message);
      await sleep(1_000);
    }
  }
}

let heartbeats, namespaces;

async function restart() { // a server that was away may have lost messages
  for await (const { type } of connection.status()) {
    if (type === "reconnect") for (const messages of [heartbeats, namespaces]) messages?.stop();
  }
}

async function listen() {
  for (let heard, isStale = false; ; isStale = true) { // again after each silence, which another stream may cause
    heartbeats = await read("milo.publisher");
    const silence = setTimeout(() => heartbeats.stop(), 30_000);
    for await (const { time } of heartbeats) {
      if (isStale && +time !== +heard) {
        isStale = false;
        namespaces?.stop();
      }
      heard = time;
      silence.refresh();
    }
    clearTimeout(silence);
    console.log("STALE: no publisher has been heard since", heard);
  }
}

async function follow() {
  for (;;) {
    const known = new Map(); // of each project: the epoch of its scope, and its namespaces
    namespaces = await read("milo.objects.*.*.core.namespaces.>");
    for await (const message of namespaces) {
      const [, , source, name, , , , object] = message.subject.split(".").map(decodeURIComponent);
      const project = source === "_" ? name : `${source}#${name}`;
      const scope = known.get(project) ?? known.set(project, { epoch: -1, objects: new Map() }).get(project);
      const state = message.headers.get("Milo-State"), epoch = Number(message.headers.get("Milo-Epoch"));
      if (epoch < scope.epoch) continue; // of a scope that has ended
      if (state) {
        scope.epoch = epoch;
        for (const [key, of] of scope.objects) if (of.epoch < epoch || state === "ENDED") scope.objects.delete(key);
      } else if (message.headers.get("Milo-Gone")) scope.objects.delete(object);
      else scope.objects.set(object, { epoch, ...message.json() });
      console.log(project, state || object, scope.objects.size);
    }
  }
}

await Promise.all([restart(), listen(), follow()]);
