package com.miloapis.discovery;

import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.Set;

/** Thrown when a call, a watch or credentials fail. */
public class DiscoveryException extends RuntimeException {
  private static final Set<Status.Code> FINAL =
      Set.of(
          Status.Code.INVALID_ARGUMENT,
          Status.Code.PERMISSION_DENIED,
          Status.Code.UNAUTHENTICATED,
          Status.Code.UNIMPLEMENTED,
          Status.Code.FAILED_PRECONDITION);

  /** How the message begins with which the daemon's gRPC rejects a request as RESOURCE_EXHAUSTED, which is otherwise temporary. */
  private static final String TOO_LARGE = "SERVER: Received message larger than max";

  private static final long LONGEST_DURATION_S = 315_576_000_000L; // maximum of a protobuf Duration
  private static final Duration LONGEST_RETRY_AFTER = Duration.ofMinutes(5);

  private final Status.Code code;
  private final String reason;
  private final Duration retryAfter;

  DiscoveryException(String message) {
    this(Status.Code.UNKNOWN, message);
  }

  DiscoveryException(Status.Code code, String message) {
    this(code, message, "", Duration.ZERO, null);
  }

  private DiscoveryException(Status.Code code, String message, String reason, Duration retryAfter, Throwable cause) {
    super(message, cause);
    this.code = code;
    this.reason = reason;
    this.retryAfter = retryAfter;
  }

  /**
   * The status with which a call ended; NOT_FOUND for the credential of an engagement that has ended; UNKNOWN for other
   * errors.
   */
  public Status.Code code() {
    return code;
  }

  /** Stable and machine-readable, as in the proto file; empty if the daemon did not answer. */
  public String reason() {
    return reason;
  }

  /** How long to wait before a retry, at most five minutes; zero if the daemon did not specify it. */
  public Duration retryAfter() {
    return retryAfter;
  }

  /** Whether a retry would fail too, until the request or a configuration is changed. */
  public boolean isFinal() {
    return FINAL.contains(code);
  }

  static DiscoveryException of(StatusRuntimeException error) {
    Status status = error.getStatus();
    String description = status.getDescription();
    boolean isTooLarge = status.getCode() == Status.Code.RESOURCE_EXHAUSTED && description != null && description.startsWith(TOO_LARGE);
    Status.Code code = isTooLarge ? Status.Code.INVALID_ARGUMENT : status.getCode();
    String message = code + ": " + description;
    return new DiscoveryException(code, message, detail(error, ErrorInfo.getDefaultInstance()).getReason(), retryAfter(error), error);
  }

  private static Duration retryAfter(StatusRuntimeException error) {
    var delay = detail(error, RetryInfo.getDefaultInstance()).getRetryDelay();
    boolean isValid = delay.getSeconds() >= 0 && delay.getSeconds() <= LONGEST_DURATION_S && delay.getNanos() >= 0;
    var requested = isValid ? Duration.ofSeconds(delay.getSeconds(), delay.getNanos()) : Duration.ZERO;
    return requested.compareTo(LONGEST_RETRY_AFTER) > 0 ? LONGEST_RETRY_AFTER : requested;
  }

  /** Return the detail of this type; {@code none} if there is none, since malformed details must not replace the error. */
  @SuppressWarnings("unchecked")
  private static <T extends Message> T detail(StatusRuntimeException error, T none) {
    try {
      com.google.rpc.Status status = StatusProto.fromThrowable(error);
      if (status != null) {
        for (var detail : status.getDetailsList()) {
          if (detail.is(none.getClass())) {
            return (T) detail.unpack(none.getClass());
          }
        }
      }
    } catch (InvalidProtocolBufferException | IllegalArgumentException malformed) {
      // As documented.
    }
    return none;
  }
}
