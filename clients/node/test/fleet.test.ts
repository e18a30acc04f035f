import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { create } from "@bufbuild/protobuf";
import { Metadata, status } from "@grpc/grpc-js";
import {
  ClusterEvent_Type as Type,
  DisengageReason,
  DrainingSchema,
  IssueKubeconfigResponseSchema,
  RenewOwnershipResponseSchema,
  type IssueKubeconfigRequest,
} from "../src/gen/milo/discovery/v1/discovery_pb.js";
import { DiscoveryClient, Fleet, StatusError, type EngagedCluster, type FleetOptions, type Handler } from "../src/index.js";
import { ended, engaged, event, FakeDaemon, kubeconfig, Refusal, until } from "./daemon.js";
import { Relay } from "./relay.js";

interface Started {
  daemon: FakeDaemon;
  fleet: Fleet;
  stop: () => Promise<void>;
}

const draining = { draining: create(DrainingSchema, { reason: DisengageReason.NOT_READY }) };
const disengaged = (name: string, reason: DisengageReason) => event(Type.DISENGAGED, name, {}, { reason });
const code = (error: unknown) => (error instanceof StatusError ? error.code : String(error));
const token = async (cluster: EngagedCluster) => await cluster.credential.access().then((access) => access.token, code);

async function started(t: TestContext, handler: Handler, options: FleetOptions = {}): Promise<Started> {
  const daemon = await new FakeDaemon().start();
  const end = new AbortController();
  const fleet = new Fleet(new DiscoveryClient({ address: daemon.address }), { signal: end.signal, subscriber: "test", ...options });
  const running = fleet.run(handler);
  const stop = async () => {
    end.abort();
    await running;
  };
  t.after(async () => {
    await stop();
    daemon.kill();
  });
  return { daemon, fleet, stop };
}

function issues(daemon: FakeDaemon, lifeMs?: number, refreshMs?: number): void {
  let number = 0;
  daemon.answers.issueKubeconfig = ({ cluster }: IssueKubeconfigRequest) =>
    create(IssueKubeconfigResponseSchema, { kubeconfig: kubeconfig(cluster, `token-${++number}`, { lifeMs, refreshMs }) });
}

test("a replaced cluster's handler ends before the next begins, and its credential is refused", async (t) => {
  const steps: string[] = [];
  const clusters: EngagedCluster[] = [];
  let linger!: () => void;
  const lingering = new Promise<void>((resolve) => (linger = resolve));
  const { daemon } = await started(t, async (cluster) => {
    clusters.push(cluster);
    const { uid } = cluster.current;
    steps.push(`begin ${uid} ${await token(cluster)}`);
    await ended(cluster.signal);
    steps.push(`signal ${uid} ${await token(cluster)}`);
    if (uid === "uid-a") await lingering;
    steps.push(`end ${uid}`);
  });
  issues(daemon);
  const stream = await daemon.stream();
  stream.send([engaged("a")], { reset: true });
  await until(() => steps.length === 1, "the handler begins");
  stream.send([disengaged("a", DisengageReason.REPLACED), engaged("a", { uid: "other", incarnation: "a-2" })]);
  await until(() => steps.length === 2, "the handler is notified of the end");
  linger();
  await until(() => steps.length === 4, "the next handler begins");
  assert.deepEqual(steps, ["begin uid-a token-1", "signal uid-a NOT_FOUND", "end uid-a", "begin other token-2"]);
  assert.equal(await token(clusters[0]!), "NOT_FOUND");
  assert.deepEqual(daemon.called("issueKubeconfig").map(({ incarnation }) => incarnation), ["a-1", "a-2"]);
});

test("a reengaged cluster gives no credential to the former handler", async (t) => {
  const tokens: Promise<string | undefined>[] = [];
  let begun = 0;
  const { daemon, fleet } = await started(
    t,
    async (cluster) => {
      begun += 1;
      await ended(cluster.signal);
      tokens.push(token(cluster));
    },
    { includeKubeconfigs: true },
  );
  const stream = await daemon.stream();
  stream.send([engaged("a", {}, { kubeconfig: kubeconfig("a", "one") })], { reset: true });
  await until(() => begun === 1, "the handler begins");
  const again = engaged("a", { incarnation: "a-2" }, { kubeconfig: kubeconfig("a", "two") });
  stream.send([disengaged("a", DisengageReason.NOT_READY), again]);
  await until(() => tokens.length === 1, "the first handler ends");
  assert.equal(await tokens[0], "NOT_FOUND");
  await until(() => fleet.clusters.get("a")?.current.incarnation === "a-2", "the cluster is engaged again");
  assert.equal(await token(fleet.clusters.get("a")!), "two");
});

test("a credential is issued for the new incarnation after a restart of the daemon", async (t) => {
  const { daemon, fleet } = await started(t, (cluster) => ended(cluster.signal));
  issues(daemon);
  (await daemon.stream()).send([engaged("a")], { reset: true });
  await until(() => fleet.clusters.size === 1, "the cluster is engaged");
  (await daemon.stream()).end(status.UNAVAILABLE);
  (await daemon.stream(2)).send([engaged("a", { incarnation: "a-2" }), engaged("b")], { reset: true });
  await until(() => fleet.clusters.size === 2, "the stream is restored");
  assert.equal(await token(fleet.clusters.get("a")!), "token-1");
  assert.deepEqual(daemon.called("issueKubeconfig").map(({ incarnation }) => incarnation), ["a-2"]);
});

test("a fleet reports errors of handlers and onError, and continues", async (t) => {
  const reported: unknown[] = [];
  const begun: Record<string, number> = {};
  const logged = t.mock.method(console, "error", () => {});
  const thrown: Record<string, unknown> = { error: new Error("broken"), undefined: undefined, text: "text" };
  const { daemon, fleet, stop } = await started(
    t,
    (cluster) => {
      begun[cluster.name] = (begun[cluster.name] ?? 0) + 1;
      if (cluster.name === "synchronous") throw new TypeError("synchronous");
      return cluster.name in thrown ? Promise.reject(thrown[cluster.name]) : ended(cluster.signal);
    },
    {
      onError: (cluster, error) => {
        reported.push(error);
        if (cluster.name === "text") throw new Error("of onError");
        return Promise.reject(new Error("of an asynchronous onError"));
      },
    },
  );
  const stream = await daemon.stream();
  stream.send([...Object.keys(thrown), "synchronous"].map((name) => engaged(name)), { reset: true });
  await until(() => Object.values(begun).filter((times) => times > 1).length === 4, "each handler is called again");
  assert.deepEqual(new Set(reported.slice(0, 4).map(String)), new Set(["Error: broken", "undefined", "text", "TypeError: synchronous"]));
  await until(() => logged.mock.callCount() >= 4, "the errors of onError are logged");
  stream.send([disengaged("text", DisengageReason.DELETED), engaged("well")]);
  await until(() => begun.well === 1, "the next cluster begins");
  stream.send([engaged("text")]);
  await until(() => fleet.clusters.has("text"), "the cluster is engaged again");
  await stop();
  assert.equal(daemon.called("endSubscription").length, 1);
});

test("an error of a handler after the end of its engagement is reported, unless it is the abort reason of its signal", async (t) => {
  const reported: string[] = [];
  let begun = 0;
  let returned = 0;
  const { daemon } = await started(
    t,
    async (cluster) => {
      begun += 1;
      await ended(cluster.signal);
      returned += 1;
      if (cluster.name === "a") throw new Error("while cleaning up");
      cluster.signal.throwIfAborted();
    },
    { onError: (_, error) => void reported.push(String(error)) },
  );
  const stream = await daemon.stream();
  stream.send([engaged("a"), engaged("b")], { reset: true });
  await until(() => begun === 2, "the handlers begin");
  stream.send([disengaged("b", DisengageReason.DELETED), disengaged("a", DisengageReason.DELETED)]);
  await until(() => returned === 2 && reported.length > 0, "the error is reported");
  assert.deepEqual(reported, ["Error: while cleaning up"]);
});

test("a watch continues when onDisconnect throws", async (t) => {
  const logged = t.mock.method(console, "error", () => {});
  const onDisconnect = () => {
    throw new Error("of onDisconnect");
  };
  const { daemon, fleet } = await started(t, (cluster) => ended(cluster.signal), { onDisconnect });
  (await daemon.stream()).end(status.UNAVAILABLE);
  (await daemon.stream(2)).send([engaged("a")], { reset: true });
  await until(() => fleet.clusters.size === 1, "the cluster is engaged");
  assert.match(String(logged.mock.calls[0]?.arguments[0]), /onDisconnect failed/);
});

test("a draining cluster is released after its handler ends, even with an error", async (t) => {
  let finish!: () => void;
  const slow = new Promise<void>((resolve) => (finish = resolve));
  const tokens: (string | undefined)[] = [];
  let begun = 0;
  const { daemon } = await started(
    t,
    async (cluster) => {
      begun += 1;
      await ended(cluster.signal);
      tokens.push(await token(cluster));
      await slow;
      throw new Error("while finishing");
    },
    { onError: () => {} },
  );
  issues(daemon);
  const stream = await daemon.stream();
  stream.send([engaged("a")], { reset: true });
  await until(() => begun === 1, "the handler begins");
  stream.send([event(Type.UPDATED, "a", draining)]);
  await until(() => tokens.length === 1, "the handler is notified of the drain");
  assert.deepEqual(tokens, ["token-1"], "the credential is valid until the cluster is disengaged");
  assert.equal(daemon.called("releaseCluster").length, 0);
  finish();
  await until(() => daemon.called("releaseCluster").length === 1, "the cluster is released");
  assert.equal(daemon.called("releaseCluster")[0]?.incarnation, "a-1");
});

test("a release that fails is retried while the stream is open", async (t) => {
  const { daemon } = await started(t, (cluster) => ended(cluster.signal));
  daemon.answers.releaseCluster = () => new Refusal(status.RESOURCE_EXHAUSTED);
  const stream = await daemon.stream();
  stream.send([engaged("a")], { reset: true });
  stream.send([event(Type.UPDATED, "a", draining)]);
  await until(() => daemon.called("releaseCluster").length === 1, "the release is refused");
  delete daemon.answers.releaseCluster;
  await until(() => daemon.called("releaseCluster").length === 2, "the release is retried");
});

test("a drain is released again under the incarnation of a restarted daemon", async (t) => {
  const { daemon, fleet } = await started(t, (cluster) => ended(cluster.signal));
  const released = () => daemon.called("releaseCluster").map(({ incarnation }) => incarnation);
  (await daemon.stream()).send([engaged("a")], { reset: true });
  (await daemon.stream()).send([event(Type.UPDATED, "a", draining)]);
  await until(() => released().length === 1, "the cluster is released");
  (await daemon.stream()).end(status.UNAVAILABLE);
  (await daemon.stream(2)).send([engaged("a", { incarnation: "a-2", ...draining })], { reset: true });
  await until(() => released().length === 2, "the cluster is released again");
  assert.deepEqual(released(), ["a-1", "a-2"]);
  assert.equal(fleet.clusters.get("a")?.current.incarnation, "a-2");
});

test("a cluster that is engaged while draining waits for the former engagement's handler", async (t) => {
  const steps: string[] = [];
  let finish!: () => void;
  const lingering = new Promise<void>((resolve) => (finish = resolve));
  const { daemon } = await started(t, async (cluster) => {
    steps.push("begin");
    await ended(cluster.signal);
    steps.push("signal");
    await lingering;
    steps.push(`end after ${daemon.called("releaseCluster").length} releases`);
  });
  const stream = await daemon.stream();
  stream.send([engaged("a")], { reset: true });
  await until(() => steps.length === 1, "the handler begins");
  stream.send([disengaged("a", DisengageReason.NOT_READY), engaged("a", { incarnation: "a-2", ...draining }), engaged("b")]);
  await until(() => steps.length === 3, "the handler is notified of the end, and the handler of another cluster begins");
  stream.send([disengaged("a", DisengageReason.NOT_READY), engaged("a", { incarnation: "a-3" }), engaged("c")]);
  await until(() => steps.length === 4, "the handler of another cluster begins");
  assert.deepEqual(steps, ["begin", "signal", "begin", "begin"]);
  finish();
  await until(() => steps.length === 6, "the handler ends, and the next begins");
  assert.deepEqual(steps.slice(4), ["end after 0 releases", "begin"]);
});

test("a credential is requested again after the endpoint changed", async (t) => {
  const { daemon, fleet } = await started(t, (cluster) => ended(cluster.signal));
  issues(daemon);
  const stream = await daemon.stream();
  stream.send([engaged("a")], { reset: true });
  await until(() => fleet.clusters.size === 1, "the cluster is engaged");
  assert.equal(await token(fleet.clusters.get("a")!), "token-1");
  stream.send([event(Type.UPDATED, "a", { endpoint: "https://moved.test" }), engaged("b")]);
  await until(() => fleet.clusters.has("b"), "the cluster is updated");
  assert.equal(await token(fleet.clusters.get("a")!), "token-2");
});

test("a kubeconfig that was delivered for a former endpoint is not used", async (t) => {
  const { daemon, fleet } = await started(t, (cluster) => ended(cluster.signal), { includeKubeconfigs: true });
  issues(daemon);
  const stream = await daemon.stream();
  stream.send([engaged("a", {}, { kubeconfig: kubeconfig("a", "former") })], { reset: true });
  stream.send([event(Type.UPDATED, "a", { endpoint: "https://moved.test" }), engaged("b")]);
  await until(() => fleet.clusters.has("b"), "the cluster is updated");
  assert.equal(await token(fleet.clusters.get("a")!), "token-1");
});

test("a pushed kubeconfig is used instead of a pending older response", async (t) => {
  const { daemon, fleet } = await started(t, (cluster) => ended(cluster.signal), { includeKubeconfigs: true });
  let respond!: () => void;
  const response = new Promise<void>((resolve) => (respond = resolve));
  daemon.answers.issueKubeconfig = async ({ cluster }: IssueKubeconfigRequest) => {
    const older = kubeconfig(cluster, "older");
    await response;
    return create(IssueKubeconfigResponseSchema, { kubeconfig: older });
  };
  const stream = await daemon.stream();
  stream.send([engaged("a")], { reset: true });
  await until(() => fleet.clusters.size === 1, "the cluster is engaged");
  const cluster = fleet.clusters.get("a")!;
  const first = token(cluster);
  await until(() => daemon.called("issueKubeconfig").length === 1, "a kubeconfig is requested");
  await new Promise((resolve) => setTimeout(resolve, 5)); // the next kubeconfig must be issued in a later millisecond
  stream.send([event(Type.KUBECONFIG, "a", {}, { kubeconfig: kubeconfig("a", "newer") }), engaged("b")]);
  await until(() => fleet.clusters.has("b"), "the stream has pushed a newer kubeconfig");
  assert.equal(await token(cluster), "newer");
  assert.equal(await first, "newer", "a caller that waits for the response gets the pushed kubeconfig at once");
  respond();
  assert.equal(await token(cluster), "newer");
});

test("a kubeconfig replaces one whose issue time is in the future", async (t) => {
  const { daemon, fleet } = await started(t, (cluster) => ended(cluster.signal), { includeKubeconfigs: true });
  const stream = await daemon.stream();
  stream.send([engaged("a", {}, { kubeconfig: kubeconfig("a", "ahead", { ageMs: -3_600_000 }) })], { reset: true });
  await until(() => fleet.clusters.size === 1, "the cluster is engaged");
  assert.equal(await token(fleet.clusters.get("a")!), "ahead");
  stream.send([event(Type.KUBECONFIG, "a", {}, { kubeconfig: kubeconfig("a", "current") }), engaged("b")]);
  await until(() => fleet.clusters.has("b"), "the stream has pushed another kubeconfig");
  assert.equal(await token(fleet.clusters.get("a")!), "current");
});

test("a watch continues after a status with malformed details", async (t) => {
  const { daemon, fleet } = await started(t, (cluster) => ended(cluster.signal));
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from([0x1a, 0xff, 0xff]));
  (await daemon.stream()).call.emit("error", { code: status.UNAVAILABLE, details: "scripted", metadata });
  (await daemon.stream(2)).send([engaged("a")], { reset: true });
  await until(() => fleet.clusters.size === 1, "the cluster is engaged");
});

test("the delay before a reconnect grows while streams begin with an invalid batch", async (t) => {
  const { daemon } = await started(t, (cluster) => ended(cluster.signal));
  for (let number = 1; number <= 4; number += 1) (await daemon.stream(number)).send([engaged("a")]); // without a snapshot
  const since = performance.now();
  await daemon.stream(5);
  const waited = performance.now() - since;
  assert.ok(waited > 700, `the fifth stream began ${waited} ms after the fourth`); // half of 200 ms, doubled three times
});

test("the delay before a reconnect grows while streams break after their snapshot", async (t) => {
  const { daemon, fleet } = await started(t, (cluster) => ended(cluster.signal), { onDisconnect: () => {} });
  for (let number = 1; number <= 4; number += 1) {
    const stream = await daemon.stream(number);
    stream.send([engaged(`c${number}`)], { reset: true });
    await until(() => fleet.clusters.has(`c${number}`), "the snapshot is applied");
    stream.end(status.UNAVAILABLE);
  }
  const since = performance.now();
  await daemon.stream(5);
  const waited = performance.now() - since;
  assert.ok(waited > 700, `the fifth stream began ${waited} ms after the fourth`); // half of 200 ms, doubled three times
});

test("a watch reports an ownership that ended while an event was handled, even if it was renewed", async (t) => {
  const daemon = await new FakeDaemon().start();
  t.after(() => daemon.kill());
  const begun = performance.now();
  let renewals = 0;
  daemon.answers.renewOwnership = () => {
    renewals += 1;
    if (renewals > 1 && performance.now() < begun + 1500) return new Refusal(status.UNAVAILABLE);
    return create(RenewOwnershipResponseSchema, { sharded: true, validFor: { seconds: renewals === 1 ? 1n : 100n, nanos: 0 } });
  };
  void daemon.stream().then((stream) => stream.send([engaged("a")], { reset: true, sharded: true }));
  const events: string[] = [];
  for await (const each of new DiscoveryClient({ address: daemon.address }).watch()) {
    events.push(each.type === "DISENGAGED" ? each.reason : each.type);
    if (events.length > 1) break;
    await new Promise((resolve) => setTimeout(resolve, 3000)); // longer than the ownership, and until it is renewed
    void daemon.streams[0]!.send([event(Type.UPDATED, "a", { endpoint: "https://other.test" })], { sharded: true });
  }
  assert.deepEqual(events, ["ENGAGED", "OWNERSHIP_LOST"]);
});

test("renewals of the ownership name the subscriber while it holds clusters", async (t) => {
  const daemon = await new FakeDaemon().start();
  t.after(() => daemon.kill());
  const second = { seconds: 1n, nanos: 0 };
  let validFor: typeof second | undefined = second;
  daemon.answers.renewOwnership = () => create(RenewOwnershipResponseSchema, validFor ? { sharded: true, validFor } : { sharded: true });
  const named = () => daemon.called("renewOwnership").at(-1)?.subscriber;
  const watch = new DiscoveryClient({ address: daemon.address }).watch({ subscriber: "operator" });
  void daemon.stream().then((stream) => stream.send([engaged("a")], { reset: true, sharded: true }));
  void daemon.stream(2).then((stream) => stream.send([engaged("a")], { reset: true, sharded: true }));
  const events: string[] = [];
  for await (const each of watch) {
    events.push(each.type === "DISENGAGED" ? each.reason : each.type);
    if (events.length === 1) {
      await until(() => named() === "operator", "the subscriber is named");
      validFor = undefined; // as without a stream
    } else if (events.length === 2) {
      await until(() => named() === "", "no subscriber is named");
      validFor = second;
    } else break;
  }
  assert.deepEqual(events, ["ENGAGED", "OWNERSHIP_LOST", "ENGAGED"]);
});

test("a watch that is iterated again renews the ownership again", async (t) => {
  const daemon = await new FakeDaemon().start();
  t.after(() => daemon.kill());
  const second = { seconds: 1n, nanos: 0 };
  daemon.answers.renewOwnership = () => create(RenewOwnershipResponseSchema, { sharded: true, validFor: second });
  const watch = new DiscoveryClient({ address: daemon.address }).watch();
  void daemon.stream().then((stream) => stream.send([engaged("a")], { reset: true, sharded: true }));
  for await (const _ of watch) break;
  const before = daemon.called("renewOwnership").length;
  void daemon.stream(2).then((stream) => {
    stream.send([], { sharded: true });
    return until(() => daemon.called("renewOwnership").length > before + 4, "the ownership is renewed").then(() => stream.send([engaged("b")], { sharded: true }));
  });
  for await (const each of watch) {
    assert.deepEqual([each.type, each.cluster.name], ["ENGAGED", "b"]);
    break;
  }
});

test("a stopped fleet ends its subscription after its handlers, whose credentials stay valid", async (t) => {
  const steps: string[] = [];
  const clusters: EngagedCluster[] = [];
  const { daemon, stop } = await started(t, async (cluster) => {
    clusters.push(cluster);
    steps.push("begin");
    await ended(cluster.signal);
    steps.push(`cleaning up with ${await token(cluster)}`);
    await new Promise((resolve) => setImmediate(resolve));
    steps.push(`subscriptions ended: ${daemon.called("endSubscription").length}`);
  });
  issues(daemon);
  (await daemon.stream()).send([engaged("a")], { reset: true });
  await until(() => steps.length === 1, "the handler begins");
  await stop();
  assert.deepEqual(steps, ["begin", "cleaning up with token-1", "subscriptions ended: 0"]);
  assert.equal(await token(clusters[0]!), "NOT_FOUND", "the credential ends with the fleet");
  assert.equal(daemon.called("endSubscription").length, 1);
});

test("5,000 handlers share one connection for their credentials", async (t) => {
  const names = Array.from({ length: 5000 }, (_, number) => `c${number}`);
  let done = 0;
  const { daemon } = await started(t, async (cluster) => {
    if ((await token(cluster))?.startsWith("token-")) done += 1;
    await ended(cluster.signal);
  });
  issues(daemon);
  (await daemon.stream()).send(names.map((name) => engaged(name)), { reset: true });
  await until(() => done === names.length, "each handler gets its credential");
  assert.equal(daemon.callers.size, 1);
});

test("requests to an unavailable issuer are rate-limited over all handlers", async (t) => {
  const names = Array.from({ length: 500 }, (_, number) => `c${number}`);
  let asked = 0;
  let answered = 0;
  const { daemon } = await started(t, async (cluster) => {
    for (; !cluster.signal.aborted; asked += 1) {
      if ((await token(cluster))?.startsWith("token-")) answered += 1;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  });
  daemon.answers.issueKubeconfig = () => new Refusal(status.UNAVAILABLE);
  const since = Date.now();
  (await daemon.stream()).send(names.map((name) => engaged(name)), { reset: true });
  await until(() => asked > 1000 && Date.now() - since > 3000, "handlers request credentials for some seconds");
  const seconds = (Date.now() - since) / 1000;
  const calls = daemon.called("issueKubeconfig").length;
  // True on a machine of any speed: each failed request keeps one of the 16 slots for another second.
  assert.ok(calls <= 16 * (seconds + 1), `${calls} calls in ${seconds} s`);
  issues(daemon);
  await until(() => answered > 0, "handlers get credentials when the issuer is available again");
});

test("credentials are renewed before expiry while the daemon restarts and misses heartbeats", async (t) => {
  const found: (string | undefined)[] = [];
  const { daemon, fleet } = await started(
    t,
    async (cluster) => {
      for (; !cluster.signal.aborted; found.push(await token(cluster))) await new Promise((resolve) => setTimeout(resolve, 20));
    },
    { heartbeatIntervalMs: 1000 },
  );
  issues(daemon, 60_000, 5_000); // due while the daemon sends no heartbeats, and valid for as long as a slow machine needs
  (await daemon.stream()).send([engaged("a")], { reset: true });
  await until(() => found.length > 3, "the handler gets credentials");
  const cluster = fleet.clusters.get("a");
  daemon.kill();
  await daemon.start();
  const again = await daemon.stream(2); // sends no heartbeats
  again.send([engaged("a", { incarnation: "a-2" })], { reset: true });
  const third = await daemon.stream(3); // opened after three missed heartbeats
  third.send([]);
  await until(() => found.includes("token-2"), "the credential is renewed");
  assert.equal(fleet.clusters.get("a"), cluster, "the handler keeps running");
  assert.deepEqual(found.filter((each) => !each?.startsWith("token-")), []);
});

test("a handler gets no error and no expired credential while the daemon is stopped", async (t) => {
  const daemon = await new FakeDaemon().start();
  const relay = new Relay();
  const expiry = new Map<string, number>();
  daemon.answers.issueKubeconfig = ({ cluster }: IssueKubeconfigRequest) => {
    // With a lifetime of 20 s, and issued 16 s ago: due for renewal in 1 s, and not used after 2 s.
    const name = `token-${expiry.size}`;
    expiry.set(name, Date.now() + 4000);
    return create(IssueKubeconfigResponseSchema, {
      kubeconfig: kubeconfig(cluster, name, { lifeMs: 20_000, refreshMs: 17_000, ageMs: 16_000 }),
    });
  };
  const end = new AbortController();
  const begun: string[] = [];
  const errors: unknown[] = [];
  const received: { cluster: string; token: string | undefined; at: number }[] = [];
  let isAsking = false;
  const client = new DiscoveryClient({ address: await relay.start(daemon.port) });
  const fleet = new Fleet(client, { signal: end.signal, heartbeatIntervalMs: 1000, onError: (_, error) => errors.push(error) });
  const running = fleet.run(async (cluster) => {
    begun.push(cluster.name);
    while (!cluster.signal.aborted) {
      isAsking = true;
      const found = await token(cluster);
      isAsking = false;
      received.push({ cluster: cluster.name, token: found, at: Date.now() });
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  });
  t.after(async () => {
    relay.resume();
    end.abort();
    await running;
    relay.close();
    daemon.kill();
  });
  (await daemon.stream()).send([engaged("a")], { reset: true });
  await until(() => received.length > 0, "the handler gets a credential");

  relay.stop();
  const connections = relay.accepted;
  await until(() => relay.accepted > connections, "the watch has missed three heartbeats, and opens another connection");
  await until(() => [...expiry.values()].every((at) => Date.now() > at), "the last credential has expired");
  const misused = () => received.filter(({ token, at }) => !(at <= (expiry.get(token ?? "") ?? 0)));
  await until(() => isAsking || misused().length > 0, "the handler waits for the next one");
  const before = new Set(expiry.keys());
  relay.resume();

  let served = 1;
  await until(() => {
    if (served < daemon.streams.length) daemon.streams[served++]!.send([engaged("b")]);
    return begun.includes("b");
  }, "the stream is resumed");
  await until(() => received.some(({ cluster, token }) => cluster === "a" && !before.has(token ?? "")), "the handler gets the next credential");
  assert.deepEqual(begun, ["a", "b"]);
  assert.deepEqual(misused(), []);
  assert.deepEqual(errors, []);
});

test("an operator ends its handlers and its subscription after SIGTERM, and exits", async (t) => {
  const exitsWithinS = 10; // of a pod's grace period of 30 s
  const daemon = await new FakeDaemon().start();
  issues(daemon);
  const program = fileURLToPath(new URL("operator.js", import.meta.url));
  const env = { PATH: process.env.PATH, MILO_DISCOVERY_ADDRESS: daemon.address };
  const operator = spawn(process.execPath, [program], { env, stdio: ["pipe", "pipe", "inherit"] });
  t.after(() => {
    operator.kill("SIGKILL");
    daemon.kill();
  });
  const printed: string[] = [];
  createInterface(operator.stdout).on("line", (line) => printed.push(line));
  (await daemon.stream()).send([engaged("a"), engaged("b")], { reset: true });
  await until(() => printed.length === 2, "the handlers begin");
  operator.kill("SIGTERM");
  const hasExited = () => (operator.exitCode ?? operator.signalCode) !== null;
  await until(() => printed.length === 4 || hasExited(), "the handlers are notified of the end");
  assert.ok(!hasExited(), "the process waits for its handlers");
  assert.equal(daemon.called("endSubscription").length, 0);
  const since = Date.now();
  const closed = once(operator, "close"); // after its output has ended
  operator.stdin.write("finish\n");
  assert.deepEqual(await closed, [0, null]);
  const seconds = (Date.now() - since) / 1000;
  t.diagnostic(`an operator in Node exited ${seconds} s after its last handler was allowed to end`);
  assert.deepEqual(printed.slice(0, 2).sort(), ["begin a", "begin b"]);
  assert.deepEqual(printed.slice(2, 4).map((line) => line.replace(/token-\d+$/, "token")).sort(), ["signal a token", "signal b token"]);
  assert.deepEqual(printed.slice(4).sort(), ["end a", "end b"]);
  assert.equal(daemon.called("endSubscription").length, 1);
  assert.ok(seconds < exitsWithinS, `${seconds} s`);
});
