import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { create } from "@bufbuild/protobuf";
import { Metadata, status } from "@grpc/grpc-js";
import { converted } from "../src/errors.js";
import { IssueKubeconfigResponseSchema, type IssueKubeconfigRequest } from "../src/gen/milo/discovery/v1/discovery_pb.js";
import { DiscoveryClient, StatusError } from "../src/index.js";
import { details, FakeDaemon, kubeconfig, Refusal, until } from "./daemon.js";

const UNAVAILABLE = { code: "UNAVAILABLE" };

async function started(t: TestContext) {
  const daemon = await new FakeDaemon().start();
  t.after(() => daemon.kill());
  return { daemon, client: new DiscoveryClient({ address: daemon.address }) };
}

test("an error of the daemon does not replace the connection", async (t) => {
  const { daemon, client } = await started(t);
  daemon.answers.issueKubeconfig = () => new Refusal(status.UNAVAILABLE, "ISSUER_UNAVAILABLE");
  for (let call = 0; call < 5; call += 1) await assert.rejects(client.issueKubeconfig("a"), UNAVAILABLE);
  assert.equal(daemon.callers.size, 1);
  daemon.answers.issueKubeconfig = () => new Refusal(status.UNAVAILABLE); // as from a proxy that has lost the daemon
  for (let call = 0; call < 2; call += 1) await assert.rejects(client.issueKubeconfig("a"), UNAVAILABLE);
  assert.equal(daemon.callers.size, 2);
});

test("a call that ends UNAVAILABLE fails no other call", async (t) => {
  const { daemon, client } = await started(t);
  let respond!: () => void;
  const response = new Promise<void>((resolve) => (respond = resolve));
  daemon.answers.issueKubeconfig = async ({ cluster }: IssueKubeconfigRequest) => {
    if (cluster === "refused") return new Refusal(status.UNAVAILABLE);
    await response;
    return create(IssueKubeconfigResponseSchema, { kubeconfig: kubeconfig(cluster, "one") });
  };
  const slow = client.issueKubeconfig("slow");
  await until(() => daemon.calls.length === 1, "the call is in flight");
  const refused = client.issueKubeconfig("refused");
  await assert.rejects(refused, UNAVAILABLE);
  respond();
  assert.equal((await slow).cluster, "slow");
});

for (const [what, duration, expected] of [
  ["30 days", [0x08, 0x80, 0x9a, 0x9e, 0x01], 300_000],
  ["2.5 s", [0x08, 0x02, 0x10, 0x80, 0xca, 0xb5, 0xee, 0x01], 2500],
  ["a malformed duration", [0x08], undefined],
] as const) {
  test(`a requested delay of ${what} is ${expected} ms`, () => {
    const metadata = details("RetryInfo", [...duration]);
    const error = converted(Object.assign(new Error(), { code: status.UNAVAILABLE, details: "", metadata }));
    assert.ok(error instanceof StatusError);
    assert.deepEqual([error.retryAfterMs, error.reason], [expected, ""]);
  });
}

test("a request that is too long for the daemon is invalid", () => {
  const details = "SERVER: Received message larger than max (102704 vs. 98304)";
  const error = converted(Object.assign(new Error(), { code: status.RESOURCE_EXHAUSTED, details, metadata: new Metadata() }));
  assert.ok(error instanceof StatusError);
  assert.deepEqual([error.code, error.isFinal], ["INVALID_ARGUMENT", true]);
});
