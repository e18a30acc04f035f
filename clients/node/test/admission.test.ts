import assert from "node:assert/strict";
import { test } from "node:test";

import { projectOf } from "../src/index.js";

const extra = (group: string, type: string, name: string): Record<string, string[]> => ({
  "iam.miloapis.com/parent-api-group": [group],
  "iam.miloapis.com/parent-type": [type],
  "iam.miloapis.com/parent-name": [name],
});

test("the project of a review is read from its user", () => {
  const group = "resourcemanager.miloapis.com";
  assert.equal(projectOf({ extra: extra(group, "Project", "alpha") }), "alpha");
  assert.equal(projectOf({ extra: extra(group, "Organization", "acme") }), undefined);
  assert.equal(projectOf({ extra: extra("example.com", "Project", "alpha") }), undefined);
  assert.equal(projectOf({ extra: extra(group, "Project", "") }), undefined);
  assert.equal(projectOf({}), undefined);
  assert.equal(projectOf(undefined), undefined);
});
