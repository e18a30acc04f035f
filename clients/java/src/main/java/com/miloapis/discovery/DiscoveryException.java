package com.miloapis.discovery;

import com.google.protobuf.InvalidProtocolBufferException;
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

  private static final long LONGEST_DURATION_S = 315_576_000_000L; // maximum of a protobuf Duration

  private final Status.Code code;
  private final Duration retryAfter;

  DiscoveryException(String message) {
    this(Status.Code.UNKNOWN, message, Duration.ZERO, null);
  }

  DiscoveryException(Status.Code code, String message) {
    this(code, message, Duration.ZERO, null);
  }

  private DiscoveryException(Status.Code code, String message, Duration retryAfter, Throwable cause) {
    super(message, cause);
    this.code = code;
    this.retryAfter = retryAfter;
  }

  /**
   * The status with which a call ended; NOT_FOUND for the credential of an engagement that has ended; UNKNOWN for other
   * errors.
   */
  public Status.Code code() {
    return code;
  }

  /** How long to wait before a retry; zero if the daemon did not specify it. */
  public Duration retryAfter() {
    return retryAfter;
  }

  /** Whether a retry would fail too, until the request or a configuration is changed. */
  public boolean isFinal() {
    return FINAL.contains(code);
  }

  static DiscoveryException of(StatusRuntimeException error) {
    Status status = error.getStatus();
    String message = status.getCode() + ": " + status.getDescription();
    return new DiscoveryException(status.getCode(), message, retryAfter(error), error);
  }

  private static Duration retryAfter(StatusRuntimeException error) {
    try {
      com.google.rpc.Status status = StatusProto.fromThrowable(error);
      if (status != null) {
        for (var detail : status.getDetailsList()) {
          if (detail.is(RetryInfo.class)) {
            var delay = detail.unpack(RetryInfo.class).getRetryDelay();
            var asked = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
            return asked.isNegative() || asked.getSeconds() > LONGEST_DURATION_S ? Duration.ZERO : asked;
          }
        }
      }
    } catch (InvalidProtocolBufferException | IllegalArgumentException | ArithmeticException invalid) {
      // Malformed details must not replace the error.
    }
    return Duration.ZERO;
  }
}
