// Tests of @kubernetes/client-node API clients with redirects, changed endpoints and impersonation.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import type { IncomingMessage } from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, test } from "node:test";
import { CoreV1Api, KubernetesObjectApi, Watch } from "@kubernetes/client-node";
import type { Credential } from "../src/credential.js";
import type { Access } from "../src/kubeconfig.js";
import { RenewingKubeConfig } from "../src/kubernetes.js";

const LIST = { apiVersion: "v1", kind: "NamespaceList", metadata: {}, items: [] };
const RESOURCES = { kind: "APIResourceList", groupVersion: "v1", resources: [{ name: "namespaces", kind: "Namespace", verbs: ["list"] }] };

class ControlPlane {
  readonly requests: IncomingMessage[] = [];
  redirectTo: string | undefined;
  url = "";
  readonly #server: Server;

  constructor(key: Buffer, certificate: Buffer) {
    this.#server = createServer({ key, cert: certificate }, (request, response) => {
      this.requests.push(request);
      if (this.redirectTo) response.writeHead(307, { location: this.redirectTo + request.url });
      else response.setHeader("content-type", "application/json");
      const isResources = request.url === "/prefix/api/v1";
      response.end(this.redirectTo ? "" : JSON.stringify(isResources ? RESOURCES : LIST));
    });
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.url = `https://127.0.0.1:${(this.#server.address() as AddressInfo).port}/prefix`;
  }

  tokens(): (string | undefined)[] {
    return this.requests.map((request) => request.headers.authorization);
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

let caData: string;
let first: ControlPlane;
let second: ControlPlane;
let access: Access;
let config: RenewingKubeConfig;

before(async () => {
  const directory = mkdtempSync(join(tmpdir(), "milo-"));
  const [key, certificate] = [join(directory, "key"), join(directory, "certificate")];
  const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
  const name = ["-subj", "/CN=milo.test", "-addext", "subjectAltName=IP:127.0.0.1"];
  execFileSync("openssl", ["req", "-x509", ...kind, ...name, "-keyout", key, "-out", certificate], { stdio: "pipe" });
  const files = [readFileSync(key), readFileSync(certificate)] as const;
  caData = files[1].toString("base64");
  [first, second] = [new ControlPlane(...files), new ControlPlane(...files)];
  await Promise.all([first.listen(), second.listen()]);
  rmSync(directory, { recursive: true });
});

after(() => {
  first.close();
  second.close();
});

beforeEach(async () => {
  first.requests.length = second.requests.length = 0;
  first.redirectTo = undefined;
  access = { server: first.url, caData, token: "one" };
  const credential = { access: async () => access } as Credential;
  config = await RenewingKubeConfig.open("a", credential);
});

async function watchEnds(): Promise<unknown> {
  return await new Promise((resolve) => {
    new Watch(config).watch("/api/v1/namespaces", {}, () => {}, resolve).catch(resolve);
  });
}

const requests: Record<string, () => Promise<unknown>> = {
  "a list": () => config.makeApiClient(CoreV1Api).listNamespace(),
  "a creation": () => config.makeApiClient(CoreV1Api).createNamespace({ body: { metadata: { name: "new" } } }),
  "a deletion": () => config.makeApiClient(CoreV1Api).deleteNamespace({ name: "old" }),
  "a list of any kind": () => KubernetesObjectApi.makeApiClient(config).list("v1", "Namespace"),
  "a watch": async () => {
    const error = await watchEnds();
    if (error) throw error;
  },
};

for (const [what, request] of Object.entries(requests)) {
  test(`a redirect of ${what} is an error, and is not followed`, async () => {
    for (const location of [second.url, first.url.replace("/prefix", "/other"), second.url.replace("https:", "http:")]) {
      first.requests.length = 0;
      first.redirectTo = location;
      await assert.rejects(request, /redirect/);
      assert.equal(first.requests.length, 1);
    }
    assert.equal(second.requests.length, 0);
  });
}

test("an API client sends the new token only to the new endpoint", async () => {
  const client = config.makeApiClient(CoreV1Api);
  const objects = KubernetesObjectApi.makeApiClient(config);
  await client.listNamespace();
  access = { server: second.url, caData, token: "two", actAs: { user: "shop", groups: [], extra: {} } };
  await client.listNamespace();
  await objects.list("v1", "Namespace");
  assert.deepEqual(first.tokens(), ["Bearer one"]);
  assert.deepEqual(second.tokens(), Array(3).fill("Bearer two"));
  assert.ok(second.requests.every((request) => request.url?.startsWith("/prefix/api/v1")));
  assert.ok(second.requests.every((request) => request.headers["impersonate-user"] === "shop"));
});

test("a watch that begins while the endpoint changes fails, and the next watch uses the new endpoint", async () => {
  access = { server: second.url, caData, token: "two" };
  assert.match(String(await watchEnds()), /endpoint of cluster a has changed/);
  await watchEnds();
  assert.deepEqual(first.tokens(), []);
  assert.deepEqual(second.tokens(), ["Bearer two"]);
});

test("the impersonated user and the token of a request are from one credential", async () => {
  const client = config.makeApiClient(CoreV1Api);
  for (const user of ["first", undefined, "second"]) {
    access = { server: first.url, caData, token: `of ${user}`, actAs: user === undefined ? undefined : { user, groups: [], extra: {} } };
    await client.listNamespace();
  }
  assert.deepEqual(first.tokens(), ["Bearer of first", "Bearer of undefined", "Bearer of second"]);
  assert.deepEqual(first.requests.map((request) => request.headers["impersonate-user"]), ["first", undefined, "second"]);
});
