// A fake daemon on a loopback port, with scripted streams and responses.
import { once } from "node:events";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Metadata, Server, ServerCredentials, status, type ServerUnaryCall, type ServerWritableStream } from "@grpc/grpc-js";
import {
  ClusterEvent_Type as Type,
  ClusterEventSchema,
  DiscoveryService,
  KubeconfigSchema,
  WatchClustersResponseSchema,
  type Cluster,
  type ClusterEvent,
  type Kubeconfig,
  type WatchClustersRequest,
  type WatchClustersResponse,
} from "../src/gen/milo/discovery/v1/discovery_pb.js";
import { definition } from "../src/service.js";

type Method = keyof (typeof DiscoveryService)["method"];
type Fields = Omit<MessageInitShape<typeof ClusterEventSchema>, "$typeName" | "type" | "cluster">;

const WITHIN_MS = 300_000;

/** Wait until a condition is true. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  for (const limit = Date.now() + WITHIN_MS; !condition(); ) {
    if (Date.now() > limit) throw new Error(`timed out after ${WITHIN_MS} ms waiting for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export class Refusal {
  constructor(
    readonly code: status,
    /** The reason with which the daemon answers; without one, the status is that of a lost connection. */
    readonly reason = "",
  ) {}

  get metadata(): Metadata {
    return this.reason ? details("ErrorInfo", [...Buffer.from(this.reason)]) : new Metadata();
  }
}

/** Return trailers with a detail of google.rpc, whose first field has these bytes. */
export function details(type: "ErrorInfo" | "RetryInfo", value: number[]): Metadata {
  const field = (number: number, bytes: number[]) => [(number << 3) | 2, bytes.length, ...bytes]; // fewer than 128 bytes
  const any = [...field(1, [...Buffer.from(`type.googleapis.com/google.rpc.${type}`)]), ...field(2, field(1, value))];
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from(field(3, any)));
  return metadata;
}

export function event(type: Type, name: string, cluster: Partial<Cluster> = {}, fields: Fields = {}): ClusterEvent {
  const given = { name, uid: `uid-${name}`, incarnation: `${name}-1`, endpoint: "https://milo.test", ...cluster };
  return create(ClusterEventSchema, { type, cluster: given as never, ...fields });
}

export const engaged = (name: string, cluster: Partial<Cluster> = {}, fields: Fields = {}) => event(Type.ENGAGED, name, cluster, fields);

interface KubeconfigFields {
  lifeMs?: number | undefined;
  refreshMs?: number | undefined;
  /** How long ago it was issued. */
  ageMs?: number;
  server?: string;
  user?: object;
}

export function kubeconfig(name: string, token: string, fields: KubeconfigFields = {}): Kubeconfig {
  const { lifeMs = 3_600_000, refreshMs = lifeMs / 2, ageMs = 0, server = "https://milo.test", user = {} } = fields;
  const file = {
    apiVersion: "v1",
    kind: "Config",
    "current-context": name,
    contexts: [{ name, context: { cluster: name, user: name } }],
    clusters: [{ name, cluster: { server } }],
    users: [{ name, user: { token, ...user } }],
  };
  const issuedAt = Date.now() - ageMs;
  return create(KubeconfigSchema, {
    cluster: name,
    kubeconfig: new TextEncoder().encode(JSON.stringify(file)),
    issuedAt: timestampFromMs(issuedAt),
    refreshAfter: timestampFromMs(issuedAt + refreshMs),
    expiresAt: timestampFromMs(issuedAt + lifeMs),
  });
}

export class Stream {
  #revision: string;

  constructor(
    private readonly daemon: FakeDaemon,
    readonly call: ServerWritableStream<WatchClustersRequest, WatchClustersResponse>,
  ) {
    this.#revision = call.request.resumeRevision;
  }

  send(events: ClusterEvent[], fields: { reset?: boolean; synced?: boolean; sharded?: boolean } = {}): void {
    const previousRevision = fields.reset ? "" : this.#revision;
    this.#revision = `r${++this.daemon.revisions}`;
    const batch = { events, revision: this.#revision, previousRevision, synced: true, ...fields };
    this.call.write(create(WatchClustersResponseSchema, batch));
  }

  heartbeat(): void {
    const batch = { revision: this.#revision, previousRevision: this.#revision, synced: true };
    this.call.write(create(WatchClustersResponseSchema, batch));
  }

  end(code: status, metadata = new Metadata()): void {
    this.call.emit("error", { code, details: "scripted", metadata });
  }
}

export class FakeDaemon {
  readonly streams: Stream[] = [];
  readonly calls: { method: string; request: Record<string, unknown> }[] = [];
  /** The responses to unary calls, by method. */
  readonly answers: Partial<Record<Method, (request: never) => object | Promise<object>>> = {};
  /** The remote addresses of unary calls. */
  readonly callers = new Set<string>();
  revisions = 0;
  port = 0;
  #server: Server | undefined;

  get address(): string {
    return `127.0.0.1:${this.port}`;
  }

  async start(): Promise<this> {
    const server = (this.#server = new Server());
    const unary = Object.keys(DiscoveryService.method).filter((name) => name !== "watchClusters") as Method[];
    const handlers = Object.fromEntries(unary.map((name) => [name, (...given: [never, never]) => this.#answer(name, ...given)]));
    const watchClusters = (call: Stream["call"]) => void this.streams.push(new Stream(this, call));
    server.addService(definition, { ...handlers, watchClusters });
    this.port = await new Promise((resolve, reject) => {
      const bound = (error: Error | null, port: number) => (error ? reject(error) : resolve(port));
      server.bindAsync(`127.0.0.1:${this.port}`, ServerCredentials.createInsecure(), bound);
    });
    return this;
  }

  /** Stop and cut all connections, as if the daemon was killed. */
  kill(): void {
    this.#server?.forceShutdown();
  }

  /** Wait until the stream with this number is open, and return it. */
  async stream(number = 1): Promise<Stream> {
    await until(() => this.streams.length >= number, `stream ${number}`);
    return this.streams[number - 1]!;
  }

  called(method: Method): Record<string, unknown>[] {
    return this.calls.filter((call) => call.method === method).map(({ request }) => request);
  }

  async #answer(method: Method, call: ServerUnaryCall<never, object>, done: (error: object | null, response?: object) => void): Promise<void> {
    this.calls.push({ method, request: call.request });
    this.callers.add(call.getPeer());
    const answer = (await this.answers[method]?.(call.request)) ?? create(DiscoveryService.method[method].output);
    if (answer instanceof Refusal) done({ code: answer.code, details: "scripted", metadata: answer.metadata });
    else done(null, answer);
  }
}

/** Wait until the signal of a cluster is aborted. */
export async function ended(signal: AbortSignal): Promise<void> {
  if (!signal.aborted) await once(signal, "abort");
}
