package discovery

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
)

const connectInterval = 100 * time.Millisecond

// pacing is the minimum interval between the connections of a ClientConn. Without it, gRPC opens hundreds a second to a
// server that ends each with GOAWAY while a call waits for one.
type pacing struct {
	mutex sync.Mutex
	last  time.Time
}

// HandleConn delays a connection before its first byte is sent.
func (p *pacing) HandleConn(ctx context.Context, event stats.ConnStats) {
	if _, ok := event.(*stats.ConnBegin); !ok {
		return
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	sleep(ctx, time.Until(p.last.Add(connectInterval)))
	p.last = time.Now()
}

func (*pacing) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (*pacing) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (*pacing) HandleRPC(context.Context, stats.RPCStats) {}

// sharedConn is the connection that unary calls share until it fails.
//
// A failed connection rejects calls until its reconnect backoff is over, even if the daemon is running again. So the
// next call gets a new connection, and the failed one is closed after the last call on it: closing it earlier would
// cancel the calls in flight.
type sharedConn struct {
	dial func() (*grpc.ClientConn, error)

	mutex   sync.Mutex
	current *lane
	retired map[*lane]struct{} // failed, with calls in flight
	closed  bool
}

// lane is one connection, with its calls in flight.
type lane struct {
	conn     *grpc.ClientConn
	calls    int  // in flight
	answered bool // a call succeeded on it
}

func (s *sharedConn) enter() (*lane, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.current == nil {
		conn, err := s.dial()
		if err != nil {
			return nil, err
		}
		s.current = &lane{conn: conn}
	}
	s.current.calls++
	return s.current, nil
}

// leave records the end of a call. It reports whether to retry the call, which is idempotent, on another connection: if
// earlier calls succeeded on this one, the daemon may have been restarted since.
func (s *sharedConn) leave(used *lane, err error) (retry bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	used.calls--
	switch {
	case err == nil:
		used.answered = true
	case lostConnection(err):
		retry = used.answered && !s.closed
		if s.current == used {
			s.current = nil
			if s.retired == nil {
				s.retired = map[*lane]struct{}{}
			}
			s.retired[used] = struct{}{}
		}
	}
	if used != s.current && used.calls == 0 {
		_ = used.conn.Close() // a second call returns an error
		delete(s.retired, used)
	}
	return retry
}

// close cancels all calls, also those on connections that failed for other calls.
func (s *sharedConn) close() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.current != nil {
		_ = s.current.conn.Close()
		s.current = nil
	}
	for lane := range s.retired {
		_ = lane.conn.Close()
	}
}
