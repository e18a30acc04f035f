package discovery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.miloapis.com/discovery/internal/session"
)

// Errors that a [StatusError] matches with [errors.Is], depending on its gRPC code.
var (
	// ErrNotFound is returned when the daemon does not know the cluster, or the caller may not see it; by [Client.Issue]
	// also when the cluster is not engaged.
	ErrNotFound = errors.New("not found")
	// ErrInvalidRequest is returned when an argument is invalid. If the daemon rejected it, the error is a StatusError
	// whose Violations are the invalid fields.
	ErrInvalidRequest = errors.New("invalid request")
	// ErrPermissionDenied is returned when the caller is authenticated but not allowed to make the call.
	ErrPermissionDenied = errors.New("permission denied")
	// ErrUnauthenticated is returned when the daemon does not accept the caller's credentials.
	ErrUnauthenticated = errors.New("unauthenticated")
	// ErrPreconditionFailed is returned when the daemon's configuration or the cluster's state does not allow the call.
	ErrPreconditionFailed = errors.New("precondition failed")
	// ErrUnimplemented is returned when the daemon is older than this client, or another program listens on its address.
	ErrUnimplemented = errors.New("unimplemented")
	// ErrUnavailable is returned when the daemon is unreachable, or cannot serve the call at present. Retry later.
	ErrUnavailable = errors.New("unavailable")
	// ErrTimedOut is returned when the deadline was exceeded.
	ErrTimedOut = errors.New("timed out")
)

var (
	// ErrStreamBroken is reported when a watch gives up its stream: a batch is missing, an event contradicts earlier
	// ones, heartbeats are missing, the daemon ended the stream, or the daemon does not own its clusters. Watches recover
	// from it and report it to [Hooks].Disconnected only.
	ErrStreamBroken = session.ErrBroken
	// ErrOwnershipLost is reported when a watch closed its stream because the daemon did not confirm in time that it still
	// owns its clusters. It is reported to [Hooks].Disconnected only.
	ErrOwnershipLost = fmt.Errorf("%w: the daemon did not confirm in time that it owns its clusters", ErrStreamBroken)
	// ErrClosed is returned by calls and watches of a client that was closed.
	ErrClosed = errors.New("discovery client is closed")
)

var codeErrors = map[codes.Code]error{
	codes.NotFound:           ErrNotFound,
	codes.InvalidArgument:    ErrInvalidRequest,
	codes.PermissionDenied:   ErrPermissionDenied,
	codes.Unauthenticated:    ErrUnauthenticated,
	codes.FailedPrecondition: ErrPreconditionFailed,
	codes.Unimplemented:      ErrUnimplemented,
	codes.Unavailable:        ErrUnavailable,
	codes.DeadlineExceeded:   ErrTimedOut,
}

// tooLarge begins the message with which the daemon's gRPC rejects a request as ResourceExhausted, which is otherwise
// temporary.
const tooLarge = "SERVER: Received message larger than max"

// FieldViolation is a field of a request that the daemon rejected, and why.
type FieldViolation struct {
	Field       string
	Description string
}

// StatusError is returned when a call ended with a gRPC status other than OK.
type StatusError struct {
	// Call is the method, such as "ListClusters".
	Call string
	// Code is the gRPC status code.
	Code codes.Code
	// Message is human-readable.
	Message string
	// Reason is stable and machine-readable. It is empty if the daemon did not respond.
	Reason string
	// Violations are the fields of the request that were rejected.
	Violations []FieldViolation
	// RetryAfter is how long to wait before a retry; zero if the daemon did not specify it.
	RetryAfter time.Duration

	causes []error
}

// Error returns the method, the code and the message.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.Call, e.Code, e.Message)
}

// Is reports whether target is the error for this code, such as [ErrNotFound].
func (e *StatusError) Is(target error) bool {
	known, ok := codeErrors[e.Code]
	return ok && target == known
}

// Unwrap returns the gRPC status error; also the cause of the call's context if that is done, and [ErrUntrustedServer]
// if the connection failed with it.
func (e *StatusError) Unwrap() []error { return e.causes }

// IsTerminal reports whether a retry would fail too until the request or a configuration is changed. Such an error ends
// a watch: [ErrInvalidRequest], [ErrPermissionDenied], [ErrUnauthenticated], [ErrPreconditionFailed],
// [ErrUnimplemented].
func IsTerminal(err error) bool {
	for _, terminal := range []error{
		ErrInvalidRequest, ErrPermissionDenied, ErrUnauthenticated, ErrPreconditionFailed, ErrUnimplemented,
	} {
		if errors.Is(err, terminal) {
			return true
		}
	}
	return false
}

// statusError converts a gRPC error to a StatusError.
func statusError(ctx context.Context, call string, err error) error {
	received, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", call, err)
	}
	converted := &StatusError{Call: call, Code: received.Code(), Message: received.Message(), causes: []error{err}}
	if converted.Code == codes.ResourceExhausted && strings.HasPrefix(converted.Message, tooLarge) {
		converted.Code = codes.InvalidArgument
	}
	if cause := context.Cause(ctx); cause != nil {
		converted.causes = append(converted.causes, cause)
	}
	for _, detail := range received.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			converted.Reason = detail.GetReason()
		case *errdetails.BadRequest:
			for _, each := range detail.GetFieldViolations() {
				violation := FieldViolation{Field: each.GetField(), Description: each.GetDescription()}
				converted.Violations = append(converted.Violations, violation)
			}
		case *errdetails.RetryInfo:
			converted.RetryAfter = max(0, detail.GetRetryDelay().AsDuration())
		}
	}
	return converted
}

// retryAfter returns the delay that the daemon requested; zero if it did not.
func retryAfter(err error) time.Duration {
	var failed *StatusError
	if errors.As(err, &failed) {
		return failed.RetryAfter
	}
	return 0
}

// lostConnection reports whether the daemon was unreachable: errors that the daemon returns have a reason.
func lostConnection(err error) bool {
	var failed *StatusError
	return errors.As(err, &failed) && failed.Code == codes.Unavailable && failed.Reason == ""
}
