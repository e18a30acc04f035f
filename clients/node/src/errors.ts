import { fromBinary } from "@bufbuild/protobuf";
import { BinaryReader } from "@bufbuild/protobuf/wire";
import { DurationSchema } from "@bufbuild/protobuf/wkt";
import { status, type Metadata, type ServiceError } from "@grpc/grpc-js";

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
    /** How long to wait before a retry, at most five minutes, if the daemon specified it. */
    readonly retryAfterMs?: number,
    /** Stable and machine-readable, as in the proto file; empty if the daemon did not answer. */
    readonly reason = "",
  ) {
    super(`${code}: ${message}`);
  }

  /** Whether a retry would fail too, until the request or a configuration is changed. */
  get isFinal(): boolean {
    return FINAL.has(this.code);
  }
}

const LONGEST_RETRY_AFTER_MS = 300_000; // timers overflow at 24.8 days

const FINAL = new Set<string>([
  "INVALID_ARGUMENT",
  "PERMISSION_DENIED",
  "UNAUTHENTICATED",
  "UNIMPLEMENTED",
  "FAILED_PRECONDITION",
]);

/** How the message begins with which the daemon's gRPC rejects a request as RESOURCE_EXHAUSTED, which is otherwise temporary. */
const TOO_LARGE = "SERVER: Received message larger than max";

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
  const reason = detail(metadata, "ErrorInfo");
  const retryAfterMs = milliseconds(detail(metadata, "RetryInfo"));
  const isTooLarge = code === status.RESOURCE_EXHAUSTED && details?.startsWith(TOO_LARGE);
  const name = isTooLarge ? "INVALID_ARGUMENT" : (status[code] as keyof typeof status);
  return new StatusError(name, details ?? error.message, retryAfterMs, Buffer.from(reason ?? "").toString());
}

/** Return the first field of a detail: `string reason = 1` of ErrorInfo, `google.protobuf.Duration retry_delay = 1` of RetryInfo. */
function detail(metadata: Metadata, wanted: "ErrorInfo" | "RetryInfo"): Uint8Array | undefined {
  const [status] = metadata.get("grpc-status-details-bin");
  if (!(status instanceof Uint8Array)) return undefined;
  try {
    for (const any of fields(status, 3)) { // google.rpc.Status is `repeated google.protobuf.Any details = 3`
      const [type] = fields(any, 1);
      const [value] = fields(any, 2);
      if (type && value && Buffer.from(type).toString().endsWith(`/google.rpc.${wanted}`)) return fields(value, 1)[0];
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

/** Return the milliseconds of an encoded Duration; undefined if there is none, or it is malformed. */
function milliseconds(duration: Uint8Array | undefined): number | undefined {
  if (!duration) return undefined;
  try {
    const { seconds, nanos } = fromBinary(DurationSchema, duration);
    return Math.min(Math.max(0, Number(seconds) * 1000 + nanos / 1e6), LONGEST_RETRY_AFTER_MS);
  } catch {
    return undefined;
  }
}
