import { readFileSync } from "node:fs";
import { credentials, Metadata, type ChannelCredentials } from "@grpc/grpc-js";
import { InvalidCredentials } from "./errors.js";

/**
 * Credentials for the daemon. None are needed on a Unix socket, where the kernel reports the caller's uid. Certificates are read
 * for each channel and the token for each call, so all of them can be renewed in place.
 */
export interface Credentials {
  /** CA certificates that the daemon's certificate is verified against. Enables TLS. */
  caFile?: string | undefined;
  /** Client certificate and key for mutual TLS. */
  certificateFile?: string | undefined;
  keyFile?: string | undefined;
  /** Bearer token, such as a projected service account token. Never sent over TCP without TLS. */
  tokenFile?: string | undefined;
}

/** Read MILO_DISCOVERY_CA_FILE, _CERTIFICATE_FILE, _KEY_FILE and _TOKEN_FILE. */
export function credentialsFromEnvironment(): Credentials {
  const { MILO_DISCOVERY_SERVER_UID: uid, ...variables } = process.env;
  if (uid) {
    throw new InvalidCredentials("MILO_DISCOVERY_SERVER_UID is set, but Node.js cannot verify the user that runs a server: unset it");
  }
  return {
    caFile: variables.MILO_DISCOVERY_CA_FILE || undefined,
    certificateFile: variables.MILO_DISCOVERY_CERTIFICATE_FILE || undefined,
    keyFile: variables.MILO_DISCOVERY_KEY_FILE || undefined,
    tokenFile: variables.MILO_DISCOVERY_TOKEN_FILE || undefined,
  };
}

/** Throw unless the credentials may be used with the address. */
export function checkCredentials(given: Credentials, address: string): void {
  const isSocket = address.startsWith("unix:");
  if (!given.certificateFile !== !given.keyFile) throw new InvalidCredentials("certificateFile and keyFile must be set together");
  if (given.certificateFile && !given.caFile) throw new InvalidCredentials("certificateFile needs TLS: set caFile as well");
  if (isSocket && given.caFile) throw new InvalidCredentials(`${address} is a Unix socket, which has no TLS: remove caFile`);
  if (!isSocket && given.tokenFile && !given.caFile) {
    throw new InvalidCredentials(`the token would be sent to ${address} unencrypted: set caFile to use TLS`);
  }
}

export function channelCredentials({ caFile, certificateFile, keyFile }: Credentials): ChannelCredentials {
  if (!caFile) return credentials.createInsecure();
  return credentials.createSsl(read(caFile), keyFile ? read(keyFile) : null, certificateFile ? read(certificateFile) : null);
}

/** Return the contents of the TLS files, as one string. */
export function channelFiles({ caFile, certificateFile, keyFile }: Credentials): string {
  return JSON.stringify([caFile, certificateFile, keyFile].map((path) => path && read(path).toString("latin1")));
}

/** Return the metadata for a new call, with the current token. */
export function callMetadata({ tokenFile }: Credentials): Metadata {
  const metadata = new Metadata();
  if (tokenFile) {
    const token = read(tokenFile).toString("latin1").trim();
    if (!/^[\x21-\x7e]+$/.test(token)) {
      throw new InvalidCredentials(`${tokenFile} does not contain a token: it must be one word of printable ASCII characters`);
    }
    metadata.set("authorization", `Bearer ${token}`);
  }
  return metadata;
}

function read(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new InvalidCredentials(`cannot read ${path}: ${(error as NodeJS.ErrnoException).code}`);
  }
}
