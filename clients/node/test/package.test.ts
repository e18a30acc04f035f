// Tests of the published package: README samples, exports and package.json.
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import ts from "typescript";

const PACKAGE = new URL("../../", import.meta.url);

test("the samples of the README compile unchanged", () => {
  const readme = readFileSync(new URL("README.md", PACKAGE), "utf8");
  const samples = [...readme.matchAll(/```js\n(.*?)```/gs)].map(([, sample]) => sample!);
  assert.ok(samples.length >= 2);
  // A handler that awaits the abort event of a signal that is already aborted would never end.
  for (const sample of samples) assert.doesNotMatch(sample, /^\s*await once\(cluster\.signal/m);
  const directory = new URL("dist/readme/", PACKAGE); // within the package, so that its name resolves to itself
  mkdirSync(directory, { recursive: true });
  const files = samples.map((sample, number) => {
    const file = fileURLToPath(new URL(`sample-${number}.mjs`, directory));
    writeFileSync(file, sample);
    return file;
  });
  const program = ts.createProgram(files, {
    allowJs: true,
    checkJs: true,
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    target: ts.ScriptTarget.ES2023,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    types: ["node"],
  });
  const problems = ts.getPreEmitDiagnostics(program).map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, "\n"));
  assert.deepEqual(problems, []);
});

test("enums have values at run time", async () => {
  const exported = (await import("../src/index.js")) as unknown as Record<string, Record<string, unknown>>;
  for (const name of ["ClusterEvent_Type", "Connectivity_State", "DisengageReason", "Engagement_Reason", "KubeconfigFormat", "SourceStatus_State"]) {
    assert.ok(Object.keys(exported[name] ?? {}).length > 1, name);
  }
  assert.equal(exported.DisengageReason?.NOT_READY, 2);
});

test("the package names its repository, is built when it is installed from a clone, and exports types with the code", () => {
  const described = JSON.parse(readFileSync(new URL("package.json", PACKAGE), "utf8"));
  assert.match(described.repository.url, /^git\+https:\/\/.*\/milo-discoveryd\.git$/);
  assert.equal(described.repository.directory, "clients/node");
  assert.equal(described.scripts.prepare, described.scripts.build, "an installation from a clone builds it");
  assert.deepEqual(Object.keys(described.exports["."]), ["types", "default"]);
  for (const file of Object.values<string>(described.exports["."])) readFileSync(new URL(file, PACKAGE));
});

test("no module imports itself through others", () => {
  const source = new URL("src/", PACKAGE);
  const names = readdirSync(source).filter((name) => name.endsWith(".ts"));
  let rest = new Map(
    names.map((name) => {
      const text = readFileSync(new URL(name, source), "utf8");
      return [name, [...text.matchAll(/ from "\.\/(\w+)\.js";/g)].map(([, imported]) => `${imported}.ts`)];
    }),
  );
  for (;;) {
    const left = new Map([...rest].filter(([, imported]) => imported.some((name) => rest.has(name))));
    if (left.size === rest.size) break;
    rest = left;
  }
  assert.deepEqual([...rest.keys()], []);
});
