// Prints what the Node example takes from responses with each `valid_for` of a JSON file.
import { readFileSync } from "node:fs";
import { Ownership } from "../../../examples/node/ownership.mjs";

async function isHeld(valid_for) {
  const ownership = new Ownership(async () => ({ sharded: true, valid_for }));
  await ownership.begin();
  return ownership.held;
}

const found = [];
for (const validFor of JSON.parse(readFileSync(process.argv[2]))) {
  found.push(await isHeld(validFor));
}
console.log(JSON.stringify(found));
process.exit(); // the renewals go on
