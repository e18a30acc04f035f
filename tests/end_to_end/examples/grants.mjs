// Prints what the Node example takes from responses with each `valid_for` of a JSON file.
import { readFileSync } from "node:fs";
import { Ownership } from "../../../examples/node/ownership.mjs";
import { Singleton } from "../../../examples/node/singleton.mjs";

async function isHeld(valid_for) {
  const ownership = new Ownership(async () => ({ sharded: true, valid_for }));
  await ownership.begin();
  return ownership.held;
}

// The first claim is the only one: it stops the loop.
async function isGranted(valid_for) {
  const stop = new AbortController();
  const claim = async () => {
    stop.abort();
    return { granted: ["cleanup"], valid_for };
  };
  let granted = false;
  await new Singleton("cleanup", claim, () => (granted = true)).run(stop.signal);
  return granted;
}

const found = [];
for (const validFor of JSON.parse(readFileSync(process.argv[2]))) {
  found.push({ held: await isHeld(validFor), granted: await isGranted(validFor) });
}
console.log(JSON.stringify(found));
process.exit(); // the renewals go on
