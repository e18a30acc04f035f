import { KubeConfig, type RequestContext } from "@kubernetes/client-node";
import type { OutgoingHttpHeaders } from "node:http";
import type { RequestOptions } from "node:https";
import type { Credential } from "./credential.js";
import { UnusableKubeconfig } from "./errors.js";
import type { Access, ActAs } from "./kubeconfig.js";

/** A KubeConfig whose credential is renewed while it is used: create API clients and informers from it once. */
export class RenewingKubeConfig extends KubeConfig {
  constructor(
    readonly name: string,
    private readonly credential: Credential,
  ) {
    super();
  }

  /** Return the KubeConfig of a cluster, with its first credential. */
  static async open(name: string, credential: Credential): Promise<RenewingKubeConfig> {
    const config = new RenewingKubeConfig(name, credential);
    await config.#renew();
    return config;
  }

  override async applyToHTTPSOptions(options: RequestOptions): Promise<void> {
    const { actAs } = await this.#renew();
    await super.applyToHTTPSOptions(options);
    options.headers = { ...(options.headers as OutgoingHttpHeaders | undefined), ...impersonation(actAs) };
  }

  override async applySecurityAuthentication(context: RequestContext): Promise<void> {
    const { actAs } = await this.#renew();
    await super.applySecurityAuthentication(context);
    for (const [name, value] of Object.entries(impersonation(actAs))) context.setHeaderParam(name, value);
  }

  async #renew(): Promise<Access> {
    const access = await this.credential.access();
    const name = this.name;
    this.loadFromOptions({
      clusters: [{ name, server: access.server, caData: access.caData, tlsServerName: access.tlsServerName, skipTLSVerify: false }],
      users: [{ name, token: access.token, certData: access.certificateData, keyData: access.keyData }],
      contexts: [{ name, cluster: name, user: name }],
      currentContext: name,
    });
    return access;
  }
}

/**
 * Return the headers of a user to act as. Throws for several groups, or several values of an extra field: they need one header each,
 * which the Kubernetes library cannot send, and to omit some would mean another user.
 */
export function impersonation(actAs: ActAs | undefined): Record<string, string> {
  if (!actAs) return {};
  const headers: Record<string, string> = { "Impersonate-User": actAs.user };
  const fields = Object.entries(actAs.extra).map(([key, values]): [string, string[]] => [`Extra-${encodeURIComponent(key)}`, values]);
  for (const [name, values] of [["Group", actAs.groups] as [string, string[]], ...fields]) {
    if (values.length > 1) throw new UnusableKubeconfig(`kubeconfig refused: the library for Node sends one Impersonate-${name} at most`);
    if (values[0] !== undefined) headers[`Impersonate-${name}`] = values[0];
  }
  return headers;
}
