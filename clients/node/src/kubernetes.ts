import { KubeConfig, type RequestContext } from "@kubernetes/client-node";
import type { Agent, OutgoingHttpHeaders } from "node:http";
import type { RequestOptions } from "node:https";
import type { Credential } from "./credential.js";
import { DiscoveryError, UnusableKubeconfig } from "./errors.js";
import type { Access, ActAs } from "./kubeconfig.js";

type FetchOptions = Awaited<ReturnType<KubeConfig["applyToFetchOptions"]>>;

/**
 * A KubeConfig whose credential is renewed while it is used: create API clients and informers from it once.
 *
 * Each request uses the server, the token and the impersonated user of one credential, and never combines those of different ones. A
 * redirect is an error, since the credential is only for this server.
 */
export class RenewingKubeConfig extends KubeConfig {
  /** The URLs of the current and former servers: an API client builds request URLs with the server at the time of its creation. */
  readonly #servers = new Set<string>();

  constructor(
    readonly name: string,
    private readonly credential: Credential,
  ) {
    super();
  }

  /** Return the KubeConfig of a cluster, after its first credential was obtained. */
  static async open(name: string, credential: Credential): Promise<RenewingKubeConfig> {
    const config = new RenewingKubeConfig(name, credential);
    config.#load(await credential.access());
    return config;
  }

  override async applyToFetchOptions(options: RequestOptions): Promise<FetchOptions> {
    return { ...(await super.applyToFetchOptions(options)), redirect: "error" };
  }

  /** Apply the credential to a request. Throws if the server has changed, since the caller has already built the request's URL. */
  override async applyToHTTPSOptions(options: RequestOptions): Promise<void> {
    const server = this.getCurrentCluster()?.server;
    const access = await this.credential.access();
    this.#load(access);
    if (access.server !== server) {
      throw new DiscoveryError(`the endpoint of cluster ${this.name} has changed to ${access.server}: send the request again`);
    }
    await fixed(this.name, access).applyToHTTPSOptions(options);
    options.headers = { ...(options.headers as OutgoingHttpHeaders | undefined), ...impersonation(access.actAs) };
  }

  override async applySecurityAuthentication(context: RequestContext): Promise<void> {
    const access = await this.credential.access();
    this.#load(access);
    context.setUrl(this.#moved(context.getUrl(), access.server));
    await fixed(this.name, access).applySecurityAuthentication(context);
    for (const [name, value] of Object.entries(impersonation(access.actAs))) context.setHeaderParam(name, value);
    const agent = context.getAgent();
    let isRedirected = false;
    // node-fetch calls this function for the request, and again for each redirect. It has no other hook to refuse redirects.
    context.setAgent((() => {
      if (isRedirected) throw new DiscoveryError(`the API server of cluster ${this.name} responded with a redirect, which is not followed`);
      isRedirected = true;
      return agent;
    }) as unknown as Agent);
  }

  /** Replace the server in the URL of a request with the current one. */
  #moved(url: string, server: string): string {
    const before = [...this.#servers].filter((each) => url === each || url.startsWith(`${each}/`) || url.startsWith(`${each}?`));
    const [longest] = before.sort((a, b) => b.length - a.length);
    if (longest === undefined) throw new DiscoveryError(`the request URL does not belong to a server of cluster ${this.name}`);
    return server + url.slice(longest.length);
  }

  #load(access: Access): void {
    this.#servers.add(new URL(access.server).href.replace(/\/$/, ""));
    this.loadFromOptions(optionsOf(this.name, access));
  }
}

function fixed(name: string, access: Access): KubeConfig {
  const config = new KubeConfig();
  config.loadFromOptions(optionsOf(name, access));
  return config;
}

function optionsOf(name: string, access: Access): Parameters<KubeConfig["loadFromOptions"]>[0] {
  return {
    clusters: [{ name, server: access.server, caData: access.caData, tlsServerName: access.tlsServerName, skipTLSVerify: false }],
    users: [{ name, token: access.token, certData: access.certificateData, keyData: access.keyData }],
    contexts: [{ name, cluster: name, user: name }],
    currentContext: name,
  };
}

/**
 * Return the impersonation headers of a user. Throws for several groups, or several values of an extra field: they need repeated
 * headers, which the Kubernetes library cannot send, and without some of them the request would have other rights.
 */
export function impersonation(actAs: ActAs | undefined): Record<string, string> {
  if (!actAs) return {};
  const headers: Record<string, string> = { "Impersonate-User": actAs.user };
  const fields = Object.entries(actAs.extra).map(([key, values]): [string, string[]] => [`Extra-${encodeURIComponent(key)}`, values]);
  for (const [name, values] of [["Group", actAs.groups] as [string, string[]], ...fields]) {
    if (values.length > 1) throw new UnusableKubeconfig(`kubeconfig refused: the Kubernetes library sends at most one Impersonate-${name} header`);
    if (values[0] !== undefined) headers[`Impersonate-${name}`] = values[0];
  }
  return headers;
}
