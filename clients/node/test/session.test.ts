// Runs the session test cases that all clients share.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fromJson, type JsonValue } from "@bufbuild/protobuf";
import { DisengageReason, WatchClustersResponseSchema, type Cluster, type Kubeconfig } from "../src/gen/milo/discovery/v1/discovery_pb.js";
import { Session, type News } from "../src/session.js";

interface Step {
  open?: string;
  batch?: JsonValue;
  news?: string[];
  breaks?: string;
  lose?: boolean;
  state?: { view: string[]; revision: string };
}

const path = new URL("../../../testdata/session_cases.json", import.meta.url);
const { cases } = JSON.parse(readFileSync(path, "utf8")) as { cases: { name: string; steps: Step[] }[] };

function line(words: string[], cluster: Cluster, kubeconfig: Kubeconfig | undefined, reason = "", message = ""): string {
  if (cluster.uid) words.push(`uid=${cluster.uid}`);
  if (cluster.incarnation) words.push(`incarnation=${cluster.incarnation}`);
  if (cluster.suspended) words.push("suspended");
  if (cluster.draining) words.push(`draining=${DisengageReason[cluster.draining.reason]}`);
  if (reason && reason !== "UNSPECIFIED") words.push(`reason=${reason}`);
  if (message) words.push(`message=${JSON.stringify(message)}`);
  if (kubeconfig) words.push(`kubeconfig=${new TextDecoder().decode(kubeconfig.kubeconfig)}`);
  return words.join(" ");
}

function describe(news: News): string {
  const kubeconfig = "kubeconfig" in news ? news.kubeconfig : undefined;
  const [reason, message] = news.type === "DISENGAGED" ? [news.reason, news.message] : ["", ""];
  return line([news.type, news.cluster.name], news.cluster, kubeconfig, reason, message);
}

// Return the expected news of a step, without notices that this client does not have.
const withoutNotices = (news: string[]) => news.filter((each) => !each.startsWith("SYNCED"));

for (const { name, steps } of cases) {
  test(name, () => {
    const session = new Session({ usable: (kubeconfig) => kubeconfig });
    for (const step of steps) {
      if (step.open !== undefined) assert.equal(session.open(), step.open);
      if (step.batch !== undefined) {
        const batch = fromJson(WatchClustersResponseSchema, step.batch, { ignoreUnknownFields: true });
        if (step.breaks !== undefined) assert.throws(() => session.receive(batch), { name: "StreamBroken" });
        else {
          const found = session.receive(batch).map(describe);
          if (step.news) assert.deepEqual(found, withoutNotices(step.news));
        }
      }
      if (step.lose) assert.deepEqual(session.loseOwnership().map(describe), step.news);
      if (step.state) {
        const view = [...session.view.values()].map(({ cluster, kubeconfig }) => line([cluster.name], cluster, kubeconfig));
        assert.deepEqual(view.sort(), [...step.state.view].sort());
        assert.equal(session.revision, step.state.revision);
      }
    }
  });
}
