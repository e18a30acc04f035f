import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { KubeconfigSchema } from "../src/gen/milo/discovery/v1/discovery_pb.js";
import { readAccess } from "../src/kubeconfig.js";
import { impersonation } from "../src/kubernetes.js";

function kubeconfig(user: object, cluster: object = { server: "https://milo.test" }, more: object = {}) {
  const file = {
    apiVersion: "v1",
    kind: "Config",
    "current-context": "a",
    contexts: [{ name: "a", context: { cluster: "a", user: "a" } }],
    clusters: [{ name: "a", cluster }],
    users: [{ name: "a", user }],
    ...more,
  };
  return create(KubeconfigSchema, { cluster: "a", kubeconfig: new TextEncoder().encode(JSON.stringify(file)) });
}

test("a kubeconfig with a token is read", () => {
  const access = readAccess(kubeconfig({ token: "secret" }, { server: "https://milo.test", "certificate-authority-data": "Y2E=" }));
  assert.equal(access.token, "secret");
  assert.equal(access.caData, "Y2E=");
});

test("requests impersonate the user of a kubeconfig", () => {
  const extra = { "example.com/why": ["tested"] };
  const access = readAccess(kubeconfig({ token: "secret", as: "shop", "as-groups": ["operators"], "as-user-extra": extra }));
  assert.deepEqual(access.actAs, { user: "shop", groups: ["operators"], extra });
  assert.deepEqual(impersonation(access.actAs), {
    "Impersonate-User": "shop",
    "Impersonate-Group": "operators",
    "Impersonate-Extra-example.com%2Fwhy": "tested",
  });
  assert.deepEqual(impersonation(readAccess(kubeconfig({ token: "secret" })).actAs), {});
  assert.throws(() => impersonation({ user: "shop", groups: ["a", "b"], extra: {} }), /at most one Impersonate-Group header/);
});

const refused: Record<string, ReturnType<typeof kubeconfig>> = {
  "runs a program": kubeconfig({ exec: { command: "/bin/sh" } }),
  "reads a file": kubeconfig({ tokenFile: "/etc/passwd" }),
  "names a proxy": kubeconfig({ token: "secret" }, { server: "https://milo.test", "proxy-url": "http://other" }),
  "skips verification": kubeconfig({ token: "secret" }, { server: "https://milo.test", "insecure-skip-tls-verify": true }),
  "has no credential": kubeconfig({}),
  "impersonates groups without a user": kubeconfig({ token: "secret", "as-groups": ["a"] }),
  "impersonates groups that are not a list": kubeconfig({ token: "secret", as: "a", "as-groups": "b" }),
  "has no server": kubeconfig({ token: "secret" }, {}),
  "has two users": kubeconfig({}, undefined, { users: [{ name: "a", user: { token: "x" } }, { name: "b", user: {} }] }),
};
for (const [what, given] of Object.entries(refused)) {
  test(`a kubeconfig that ${what} is refused`, () => {
    assert.throws(() => readAccess(given), (error: Error) => error.name === "UnusableKubeconfig" && !/secret/.test(error.message));
  });
}
