import { status, type Metadata, type ServiceError } from "@grpc/grpc-js";
import { BinaryReader } from "@bufbuild/protobuf/wire";

/** Base class of all errors of this package. */
export class DiscoveryError extends Error {
  override name = "DiscoveryError";
}

/** Thrown when credentials are incomplete or invalid, cannot be read, or must not be used with the address. */
export class InvalidCredentials extends DiscoveryError {
  override name = "InvalidCredentials";
}

/** Thrown when a kubeconfig is not of the form that the daemon writes. The message never quotes its content. */
export class UnusableKubeconfig extends DiscoveryError {
  override name = "UnusableKubeconfig";
}

/** Thrown when a stream violated the protocol or missed its heartbeats, or the daemon does not own its clusters. Watches recover. */
export class StreamBroken extends DiscoveryError {
  override name = "StreamBroken";
}

/** Thrown when a call ended with a gRPC status other than OK. */
export class StatusError extends DiscoveryError {
  override name = "StatusError";

  constructor(
    /** The name of the status, such as "NOT_FOUND". */
    readonly code: keyof typeof status,
    message: string,
    /** How long to wait before a retry, if the daemon specified it. */
    readonly retryAfterMs?: number,
  ) {
    super(`${code}: ${message}`);
  }

  /** Whether a retry would fail too, until the request or a configuration is changed. */
  get isFinal(): boolean {
    return FINAL.has(this.code);
  }
}

const FINAL = new Set<string>([
  "INVALID_ARGUMENT",
  "PERMISSION_DENIED",
  "UNAUTHENTICATED",
  "UNIMPLEMENTED",
  "FAILED_PRECONDITION",
]);

/** Call a callback of the user. Log its error if it throws or rejects, so that the caller is not affected. */
export function report(name: string, callback: () => unknown): void {
  const failed = (error: unknown) => console.error(`${name} failed:`, error);
  try {
    Promise.resolve(callback()).catch(failed);
  } catch (error) {
    failed(error);
  }
}

/** Convert an error of grpc-js; other errors are returned unchanged. */
export function converted(error: unknown): Error {
  if (!(error instanceof Error)) return new DiscoveryError(String(error));
  const { code, details, metadata } = error as Partial<ServiceError>;
  if (typeof code !== "number" || !metadata) return error;
  return new StatusError(status[code] as keyof typeof status, details ?? error.message, retryAfter(metadata));
}

// google.rpc.Status is `repeated google.protobuf.Any details = 3`, and RetryInfo `google.protobuf.Duration retry_delay = 1`.
function retryAfter(metadata: Metadata): number | undefined {
  const [status] = metadata.get("grpc-status-details-bin");
  if (!(status instanceof Uint8Array)) return undefined;
  try {
    for (const any of fields(status, 3)) {
      const [type] = fields(any, 1);
      const [value] = fields(any, 2);
      if (!type || !value || !Buffer.from(type).toString().endsWith("/google.rpc.RetryInfo")) continue;
      const [delay] = fields(value, 1);
      return delay && milliseconds(delay);
    }
  } catch {
    // Malformed details must not replace the error.
  }
  return undefined;
}

function fields(message: Uint8Array, wanted: number): Uint8Array[] {
  const reader = new BinaryReader(message);
  const found: Uint8Array[] = [];
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    if (number === wanted && type === 2) found.push(reader.bytes());
    else reader.skip(type);
  }
  return found;
}

function milliseconds(duration: Uint8Array): number {
  const reader = new BinaryReader(duration);
  let total = 0;
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    if (number === 1) total += Number(reader.int64()) * 1000;
    else if (number === 2) total += reader.int32() / 1e6;
    else reader.skip(type);
  }
  return Math.max(0, total);
}
