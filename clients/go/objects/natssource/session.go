package natssource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	callTimeout    = 10 * time.Second
	connectTimeout = 5 * time.Second
	pingInterval   = 10 * time.Second
	mostPings      = 2 // without an answer
	consumerLife   = 30 * time.Second

	shortReply = 9 // tokens of $JS.ACK.STREAM.CONSUMER.DELIVERIES.SEQUENCE.NUMBER.TIME.PENDING
)

// heartbeat is how often the server says that a consumer has nothing to send. It is a variable for tests.
var heartbeat = 2 * time.Second

var errWithoutInfo = errors.New("the stream's information is not permitted")

// session is one connection to NATS. It ends with its first failure, and is not opened again.
type session struct {
	ctx  context.Context // done once the connection is lost; its cause is why
	lose context.CancelCauseFunc
	// informed is done, too, if NATS' permissions do not include the stream's information.
	informed context.Context
	refuse   context.CancelCauseFunc

	connection *nats.Conn
	name       string // of the stream
	inbox      string
	number     atomic.Int64
}

func open(ctx context.Context, of Options) (*session, error) {
	s := &session{name: of.Stream}
	s.ctx, s.lose = context.WithCancelCause(ctx)
	s.informed, s.refuse = context.WithCancelCause(s.ctx)
	options := nats.GetDefaultOptions()
	for _, apply := range of.NATS {
		if err := apply(&options); err != nil {
			s.lose(err)
			return nil, err
		}
	}
	options.Url, options.Name = of.URL, "milo-objects"
	options.AllowReconnect, options.Timeout = false, connectTimeout
	options.PingInterval, options.MaxPingsOut = pingInterval, mostPings
	options.AsyncErrorCB = s.failed
	options.ClosedCB = func(c *nats.Conn) { s.lose(lost(c.LastError())) }
	options.DisconnectedErrCB = func(_ *nats.Conn, err error) { s.lose(lost(err)) }
	dialing := &dialer{ctx: s.ctx, through: options.CustomDialer}
	options.CustomDialer = dialing
	connection, err := options.Connect()
	if err != nil {
		err = fmt.Errorf("%s: %w", redacted(of.URL), err)
		s.lose(err)
		return nil, err
	}
	s.connection, s.inbox = connection, connection.NewInbox()
	return s, nil
}

// lost returns why a connection was lost.
func lost(err error) error {
	if err == nil {
		return errors.New("the connection was lost")
	}
	return fmt.Errorf("the connection was lost: %w", err)
}

// dialer closes its connections when its context is done, also those that are being opened.
type dialer struct {
	ctx     context.Context
	through nats.CustomDialer
}

// Dial connects.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	var connection net.Conn
	var err error
	if d.through != nil {
		connection, err = d.through.Dial(network, address)
	} else {
		connection, err = (&net.Dialer{Timeout: connectTimeout}).DialContext(d.ctx, network, address)
	}
	if err == nil {
		context.AfterFunc(d.ctx, func() { _ = connection.Close() })
	}
	return connection, err
}

// failed receives what NATS reports outside of an answer.
func (s *session) failed(_ *nats.Conn, _ *nats.Subscription, err error) {
	text := err.Error()
	switch {
	case !errors.Is(err, nats.ErrPermissionViolation):
		s.lose(err)
	case strings.Contains(strings.ToUpper(text), ".STREAM.INFO."):
		s.refuse(errWithoutInfo)
	default:
		s.lose(fmt.Errorf("NATS refuses: %w; check the permissions of these credentials", err))
	}
}

func (s *session) close() {
	s.lose(errors.New("closed"))
	s.connection.Close()
}

// wait waits until the connection is lost, and returns why.
func (s *session) wait() error {
	<-s.ctx.Done()
	return context.Cause(s.ctx)
}

// call calls JetStream's API.
func (s *session) call(ctx context.Context, method string, body, answer any) error {
	content := []byte{}
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = encoded
	}
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, fmt.Errorf("JetStream did not answer within %v", callTimeout))
	defer cancel()
	message, err := s.connection.RequestWithContext(ctx, "$JS.API."+method, content)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return errors.New("JetStream does not answer: enable it in the NATS server (-js), or in the account of these credentials")
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	}
	return json.Unmarshal(message.Data, answer)
}

// streamInfo is what a reader compares with what it knew of the stream.
type streamInfo struct {
	lineage      string // which stream it is, and since when it certainly has lost nothing: a server that lost power may have
	lastSequence uint64
}

func (s *session) stream() (streamInfo, error) {
	var found struct {
		nats.StreamInfo
		Error *nats.APIError `json:"error"`
	}
	switch err := s.call(s.informed, "STREAM.INFO."+s.name, nil, &found); {
	case errors.Is(err, errWithoutInfo):
		// A reader that may not have it, since it names all subjects, reads everything at each connection.
		return streamInfo{lineage: "unknown " + s.inbox}, nil
	case err != nil:
		return streamInfo{}, err
	case found.Error != nil && found.Error.ErrorCode == nats.JSErrCodeStreamNotFound:
		return streamInfo{}, fmt.Errorf("the stream %s does not exist: start its publisher", s.name)
	case found.Error != nil:
		return streamInfo{}, fmt.Errorf("the stream %s: %s", s.name, found.Error.Description)
	}
	server := ""
	if found.Config.Replicas <= 1 {
		server = s.connection.ConnectedServerId()
	}
	lineage := found.Created.Format(time.RFC3339Nano) + " " + server
	return streamInfo{lineage: lineage, lastSequence: found.State.LastSeq}, nil
}

// follow passes on each message from a sequence on, in order, with how many are left, until the connection is lost: a gap,
// or silence, loses it. Idle is called when nothing is left, and then every few seconds.
func (s *session) follow(filters []string, first uint64, receive func(stored, uint64), idle func()) error {
	of := &consumer{session: s, receive: receive, idle: idle, expected: 1}
	limit := 3*heartbeat + time.Second
	of.silence = time.AfterFunc(limit, func() { s.lose(fmt.Errorf("the consumer was silent for %v", limit)) })
	context.AfterFunc(s.ctx, func() { of.silence.Stop() })
	of.limit = limit
	inbox := s.connection.NewInbox()
	subscription, err := s.connection.Subscribe(inbox, of.deliver)
	if err != nil {
		return err
	}
	if err := subscription.SetPendingLimits(-1, -1); err != nil { // flow control limits them
		return err
	}
	name := s.inbox[strings.LastIndexByte(s.inbox, '.')+1:] + strconv.FormatInt(s.number.Add(1), 10)
	config := nats.ConsumerConfig{
		Name: name, DeliverSubject: inbox, DeliverPolicy: nats.DeliverByStartSequencePolicy, OptStartSeq: max(1, first),
		AckPolicy: nats.AckNonePolicy, MaxDeliver: 1, FlowControl: true, Heartbeat: heartbeat, InactiveThreshold: consumerLife,
		MemoryStorage: true, Replicas: 1,
	}
	method := fmt.Sprintf("CONSUMER.CREATE.%s.%s", s.name, name)
	if len(filters) == 1 { // with the filter in the subject, as NATS' permissions have it
		config.FilterSubject = filters[0]
		method += "." + filters[0]
	} else {
		config.FilterSubjects = filters
	}
	var found struct {
		nats.ConsumerInfo
		Error *nats.APIError `json:"error"`
	}
	body := map[string]any{"stream_name": s.name, "config": config, "action": "create"}
	if err := s.call(s.ctx, method, body, &found); err != nil {
		return err
	}
	if found.Error != nil {
		return fmt.Errorf("reading %s: %s", strings.Join(filters, ", "), found.Error.Description)
	}
	if found.NumPending == 0 {
		idle()
	}
	return nil
}

// consumer receives the messages of a consumer.
type consumer struct {
	*session
	receive  func(stored, uint64)
	idle     func()
	silence  *time.Timer
	limit    time.Duration
	expected uint64
	quiet    int
}

func (c *consumer) deliver(message *nats.Msg) {
	if c.ctx.Err() != nil {
		return
	}
	// The time that a receiver takes is no silence of the server.
	c.silence.Stop()
	defer c.silence.Reset(c.limit)
	if message.Header.Get("Status") != "" {
		c.control(message)
		return
	}
	// $JS.ACK.[DOMAIN.ACCOUNT.]STREAM.CONSUMER.DELIVERIES.SEQUENCE.NUMBER.TIME.PENDING[.TOKEN]
	tokens := strings.Split(message.Reply, ".")
	at := 5
	if len(tokens) != shortReply {
		at = 7
	}
	var numbers [4]uint64
	for i := range numbers {
		if at+i >= len(tokens) {
			c.lose(fmt.Errorf("a message has the reply %q, which is not that of a consumer", message.Reply))
			return
		}
		numbers[i], _ = strconv.ParseUint(tokens[at+i], 10, 64)
	}
	if numbers[1] != c.expected {
		c.lose(errors.New("messages of the consumer were lost"))
		return
	}
	c.expected, c.quiet = c.expected+1, 0
	c.receive(stored{
		subject: message.Subject, sequence: numbers[0], at: time.Unix(0, int64(numbers[2])), header: message.Header, body: message.Data,
	}, numbers[3])
}

func (c *consumer) control(message *nats.Msg) {
	stalled := message.Header.Get("Nats-Consumer-Stalled")
	if stalled != "" {
		_ = c.connection.Publish(stalled, nil)
	}
	switch {
	case message.Reply != "":
		_ = c.connection.Publish(message.Reply, nil)
	case message.Header.Get("Nats-Last-Consumer") != strconv.FormatUint(c.expected-1, 10):
		c.lose(errors.New("messages of the consumer were lost"))
		return
	case stalled == "":
		c.quiet++
	}
	// A server that waits for flow control sends heartbeats too, and one may precede a slow message.
	if c.quiet > 1 {
		c.idle()
	}
}

// redacted returns the URLs without passwords.
func redacted(urls string) string {
	parts := strings.Split(urls, ",")
	for i, each := range parts {
		if at := strings.LastIndexByte(each, '@'); at >= 0 {
			parts[i] = each[at+1:]
		}
	}
	return strings.Join(parts, ", ")
}
