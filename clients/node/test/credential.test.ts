// Tests of a credential, with scripted requests.
import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { Credential } from "../src/credential.js";
import { ClusterSchema, type Kubeconfig } from "../src/gen/milo/discovery/v1/discovery_pb.js";
import type { Known } from "../src/session.js";
import { kubeconfig, until } from "./daemon.js";

const HOUR_MS = 3_600_000;
const cluster = (endpoint: string) => create(ClusterSchema, { name: "a", uid: "uid-a", incarnation: "a-1", endpoint });

function scripted(issue: (request: number) => Promise<Kubeconfig>) {
  const known: Known = { cluster: cluster("https://milo.test"), engagement: Symbol("a") };
  const listeners = new Set<() => void>();
  const state = { requests: 0, known, moved };
  function moved(endpoint: string): void {
    state.known = { ...state.known, cluster: cluster(endpoint) };
    const notified = [...listeners];
    listeners.clear();
    for (const listener of notified) listener();
  }
  const onEvent = (listener: () => void) => {
    listeners.add(listener);
    return () => void listeners.delete(listener);
  };
  return { credential: new Credential("a", () => state.known, () => issue(++state.requests), onEvent), state };
}

for (const [what, lifeMs] of [["due for renewal", 3 * HOUR_MS], ["expired", HOUR_MS]] as const) {
  test(`a response that seems ${what} is not requested again for some seconds`, async () => {
    const old = () => kubeconfig("a", "one", { ageMs: 2 * HOUR_MS, lifeMs, refreshMs: 60_000 });
    const { credential, state } = scripted(() => Promise.resolve(old()));
    for (let use = 0; use < 100; use += 1) {
      assert.equal((await credential.access()).token, "one");
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.equal(state.requests, 1);
  });
}

test("an endpoint that changes during a request is requested at once, and the first response is dropped", async () => {
  const answers: ((answer: Kubeconfig) => void)[] = [];
  const { credential, state } = scripted(() => new Promise((resolve) => answers.push(resolve)));
  const accessed = credential.access();
  await until(() => state.requests === 1, "a kubeconfig is requested");
  state.moved("https://moved.test");
  await until(() => state.requests === 2, "a kubeconfig for the new endpoint is requested, while the first request is pending");
  answers[0]!(kubeconfig("a", "former"));
  answers[1]!(kubeconfig("a", "new"));
  assert.equal((await accessed).token, "new");
  assert.equal((await credential.access()).token, "new");
  assert.equal(state.requests, 2);
});
