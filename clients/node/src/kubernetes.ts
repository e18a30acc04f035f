import { KubeConfig, type RequestContext } from "@kubernetes/client-node";
import type { RequestOptions } from "node:https";
import type { Credential } from "./credential.js";

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
    await this.#renew();
    await super.applyToHTTPSOptions(options);
  }

  override async applySecurityAuthentication(context: RequestContext): Promise<void> {
    await this.#renew();
    await super.applySecurityAuthentication(context);
  }

  async #renew(): Promise<void> {
    const access = await this.credential.access();
    const name = this.name;
    this.loadFromOptions({
      clusters: [{ name, server: access.server, caData: access.caData, tlsServerName: access.tlsServerName, skipTLSVerify: false }],
      users: [{ name, token: access.token, certData: access.certificateData, keyData: access.keyData }],
      contexts: [{ name, cluster: name, user: name }],
      currentContext: name,
    });
  }
}
