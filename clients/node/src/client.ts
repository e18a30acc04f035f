import { create } from "@bufbuild/protobuf";
import type { ClientReadableStream, ServiceError } from "@grpc/grpc-js";
import {
  callMetadata,
  channelCredentials,
  channelFiles,
  checkCredentials,
  credentialsFromEnvironment,
  type Credentials,
} from "./credentials.js";
import { converted, DiscoveryError, StatusError } from "./errors.js";
import {
  DiscoveryService,
  type Cluster,
  type GetClusterResponse,
  type GetServerInfoResponse,
  type Kubeconfig,
  type WatchClustersRequest,
  type WatchClustersResponse,
} from "./gen/milo/discovery/v1/discovery_pb.js";
import { readAccess } from "./kubeconfig.js";
import { IssueLimit } from "./issuing.js";
import type { Filter, WatchOptions } from "./options.js";
import { connect, type Connection, type Input, type Output, type Unary } from "./service.js";
import { duration } from "./times.js";
import { Watch, type WatchCalls } from "./watch.js";

const DEFAULT_ADDRESS = "unix:///run/milo-discovery/discovery.sock";
const TIMEOUT_MS = 30_000;

type Call = (...arguments_: unknown[]) => unknown;

/** The connection that unary calls share until it fails. It is closed after the last call on it. */
interface Lane {
  connection: Connection;
  /** The contents of the files of its credentials. */
  files: string;
  /** The number of calls in flight. */
  calls: number;
}

const BROKEN = new Set(["UNAVAILABLE", "DEADLINE_EXCEEDED"]);

/** A client of the daemon at `unix:///path` or `HOST:PORT`; by default at MILO_DISCOVERY_ADDRESS. */
export class DiscoveryClient implements WatchCalls {
  readonly address: string;
  readonly #credentials: Credentials;
  readonly #issuing = new IssueLimit();
  #shared: Lane | undefined;

  constructor(options: { address?: string; credentials?: Credentials } = {}) {
    this.address = options.address ?? (process.env.MILO_DISCOVERY_ADDRESS || DEFAULT_ADDRESS);
    if (!/^unix:\/\/\/.|^[^/]+:\d+$/.test(this.address)) {
      throw new DiscoveryError(`address ${this.address} is neither unix:///path/to/socket nor HOST:PORT`);
    }
    this.#credentials = options.credentials ?? credentialsFromEnvironment();
    checkCredentials(this.#credentials, this.address);
  }

  /** Return a watch of the clusters: `for await (const event of client.watch())`. */
  watch(options: WatchOptions = {}): Watch {
    return new Watch(this, options);
  }

  /** Return all engaged clusters that match the filter, ordered by name. */
  async list(filter: Filter = {}): Promise<Cluster[]> {
    const clusters: Cluster[] = [];
    let pageToken = "";
    do {
      const page = await this.call("listClusters", { filter, pageToken });
      clusters.push(...page.clusters);
      pageToken = page.nextPageToken;
    } while (pageToken);
    return clusters;
  }

  /** Return the daemon's state of a cluster, engaged or not. */
  async get(name: string): Promise<GetClusterResponse> {
    return await this.call("getCluster", { name });
  }

  async serverInfo(): Promise<GetServerInfoResponse> {
    return await this.call("getServerInfo", {});
  }

  /** Issue a short-lived kubeconfig for an engaged cluster; with `incarnation`, only for that incarnation. */
  async issueKubeconfig(name: string, options: { ttlMs?: number; incarnation?: string } = {}): Promise<Kubeconfig> {
    const { kubeconfig } = await this.call("issueKubeconfig", {
      cluster: name,
      incarnation: options.incarnation ?? "",
      ...(options.ttlMs === undefined ? {} : { ttl: duration(options.ttlMs) }),
    });
    if (!kubeconfig) throw new DiscoveryError(`the daemon's response contains no kubeconfig for ${name}`);
    readAccess(kubeconfig);
    return kubeconfig;
  }

  /** Notify the daemon that a subscriber has finished all its work, so that no draining cluster waits for it. */
  async endSubscription(subscriber: string): Promise<void> {
    await this.call("endSubscription", { subscriber });
  }

  /** @internal Issue a kubeconfig for a credential; `isRetry` if the last request for it failed. */
  async issueCredential(name: string, incarnation: string, isRetry: boolean): Promise<Kubeconfig> {
    return await this.#issuing.run(() => this.issueKubeconfig(name, { incarnation }), isRetry);
  }

  /** @internal Make a unary call, on the connection that all unary calls share. */
  async call<Name extends Unary>(name: Name, init: Input<Name>, timeoutMs = TIMEOUT_MS): Promise<Output<Name>> {
    const metadata = callMetadata(this.#credentials);
    const request = create(DiscoveryService.method[name].input, init as never);
    const lane = this.#enter();
    const { connection } = lane;
    let isBroken = false;
    try {
      return await new Promise((resolve, reject) => {
        const done = (error: ServiceError | null, response: Output<Name>) => (error ? reject(error) : resolve(response));
        (connection[name] as Call).call(connection, request, metadata, { deadline: Date.now() + timeoutMs }, done);
      });
    } catch (error) {
      const failure = converted(error);
      // The connection may be half-open, or to a daemon that has stopped. Errors that the daemon returns have a reason.
      isBroken = failure instanceof StatusError && BROKEN.has(failure.code) && failure.reason === "";
      throw failure;
    } finally {
      this.#leave(lane, isBroken);
    }
  }

  #enter(): Lane {
    const files = channelFiles(this.#credentials); // certificates can be renewed in place
    if (this.#shared && this.#shared.files !== files) this.#retire(this.#shared);
    this.#shared ??= { connection: this.connect(), files, calls: 0 };
    this.#shared.calls += 1;
    return this.#shared;
  }

  #leave(lane: Lane, isBroken: boolean): void {
    lane.calls -= 1;
    if (isBroken || lane !== this.#shared) this.#retire(lane);
  }

  /** Make the next call open another connection. Calls in flight continue. */
  #retire(lane: Lane): void {
    if (this.#shared === lane) this.#shared = undefined;
    if (lane.calls === 0) lane.connection.close();
  }

  /** @internal */
  connect(): Connection {
    return connect(this.address, channelCredentials(this.#credentials));
  }

  /** @internal */
  openStream(
    connection: Connection,
    request: WatchClustersRequest,
  ): ClientReadableStream<WatchClustersResponse> {
    const metadata = callMetadata(this.#credentials);
    const call = connection.watchClusters as Call;
    return call.call(connection, request, metadata) as ClientReadableStream<WatchClustersResponse>;
  }
}
