import { UnusableKubeconfig } from "./errors.js";
import type { Kubeconfig } from "./gen/milo/discovery/v1/discovery_pb.js";

/** The API server of a kubeconfig that the daemon issued, and the credential for it. */
export interface Access {
  server: string;
  caData?: string | undefined;
  tlsServerName?: string | undefined;
  token?: string | undefined;
  certificateData?: string | undefined;
  keyData?: string | undefined;
  /** The user that requests impersonate. */
  actAs?: ActAs | undefined;
}

export interface ActAs {
  user: string;
  groups: string[];
  extra: Record<string, string[]>;
}

type Fields = Record<string, unknown>;

/**
 * Read a kubeconfig of the form that the daemon writes, JSON with a token or a client certificate. Everything else is refused:
 * a server that impersonates the daemon could send a program to run, a file to read or a proxy.
 */
export function readAccess(kubeconfig: Kubeconfig): Access {
  let file: unknown;
  try {
    file = JSON.parse(new TextDecoder().decode(kubeconfig.kubeconfig));
  } catch {
    throw new UnusableKubeconfig("kubeconfig refused: it is not JSON");
  }
  const top = object(file, ["apiVersion", "kind", "current-context", "contexts", "clusters", "users"]);
  const named = (list: string, inner: string, fields: string[]): Fields => {
    const [entry, ...others] = Array.isArray(top[list]) ? (top[list] as unknown[]) : [];
    if (others.length > 0) throw new UnusableKubeconfig(`kubeconfig refused: it has several ${list}`);
    return object(object(entry, ["name", inner])[inner], fields);
  };
  named("contexts", "context", ["cluster", "user"]);
  const cluster = named("clusters", "cluster", ["server", "certificate-authority-data", "tls-server-name"]);
  const user = named("users", "user", ["token", "client-certificate-data", "client-key-data", "as", "as-groups", "as-user-extra"]);
  const text = (fields: Fields, name: string) => (typeof fields[name] === "string" ? fields[name] || undefined : undefined);
  const access: Access = {
    server: text(cluster, "server") ?? "",
    caData: text(cluster, "certificate-authority-data"),
    tlsServerName: text(cluster, "tls-server-name"),
    token: text(user, "token"),
    certificateData: text(user, "client-certificate-data"),
    keyData: text(user, "client-key-data"),
    actAs: actAs(user),
  };
  if (!access.server) throw new UnusableKubeconfig("kubeconfig refused: it has no server");
  if (!access.token && !(access.certificateData && access.keyData)) {
    throw new UnusableKubeconfig("kubeconfig refused: it has neither a token nor a client certificate with its key");
  }
  return access;
}

function actAs(fields: Fields): ActAs | undefined {
  const { as: user, "as-groups": groups = [], "as-user-extra": extra = {} } = fields;
  const texts = (value: unknown) => Array.isArray(value) && value.every((each) => typeof each === "string");
  const isMapping = typeof extra === "object" && extra !== null && Object.values(extra).every(texts);
  if (user === undefined && !("as-groups" in fields || "as-user-extra" in fields)) return undefined;
  if (typeof user !== "string" || !user || !texts(groups) || !isMapping) {
    throw new UnusableKubeconfig("kubeconfig refused: the impersonated user is not of the form that the daemon writes");
  }
  return { user, groups: groups as string[], extra: extra as Record<string, string[]> };
}

/** Return the kubeconfig if it is of the form that the daemon writes. Otherwise log an error: an exception would end the watch. */
export function usable(kubeconfig: Kubeconfig | undefined): Kubeconfig | undefined {
  try {
    if (kubeconfig) readAccess(kubeconfig);
    return kubeconfig;
  } catch (error) {
    console.error(`cluster ${kubeconfig?.cluster}: ${(error as Error).message}`); // the content is secret
    return undefined;
  }
}

function object(value: unknown, allowed: string[]): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new UnusableKubeconfig("kubeconfig refused: it is not of the form that the daemon writes");
  }
  if (Object.keys(value).some((name) => !allowed.includes(name))) {
    throw new UnusableKubeconfig("kubeconfig refused: it has fields that the daemon does not write");
  }
  return value as Fields;
}
