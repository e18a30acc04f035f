// An operator that handles SIGTERM as in the README. Its handlers clean up until a line arrives on standard input.
import { once } from "node:events";
import { DiscoveryClient, Fleet } from "../src/index.js";
import { ended } from "./daemon.js";

const ending = new AbortController();
process.once("SIGTERM", () => ending.abort());
const finished = once(process.stdin, "data");

await new Fleet(new DiscoveryClient(), { signal: ending.signal }).run(async (cluster) => {
  console.log(`begin ${cluster.name}`);
  await ended(cluster.signal);
  console.log(`signal ${cluster.name} ${(await cluster.credential.access()).token}`);
  await finished;
  console.log(`end ${cluster.name}`);
});
process.stdin.destroy();
