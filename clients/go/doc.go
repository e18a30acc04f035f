// Package discovery follows Milo project control planes through milo-discoveryd.
//
// The daemon runs beside an operator, watches the projects of Milo, and streams which of them are ready: a cluster is
// engaged, updated, and disengaged. [Client.Watch] calls a function with these events:
//
//	client, err := discovery.Dial(discovery.Options{})
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	return client.Watch(ctx, discovery.WatchOptions{}, func(events []discovery.Event) {
//		for _, event := range events {
//			log.Println(event.Type, event.Cluster.Name, event.Cluster.Endpoint)
//		}
//	})
//
// # Guarantees
//
// Whatever happens to the connection or to the daemon, engagements and disengagements of a cluster alternate:
//
//   - A broken stream is resumed from the last complete batch. No event is lost or repeated.
//   - After a restart, the daemon sends a snapshot. Only its differences from the earlier events are reported. A cluster
//     with the same name and UID is the same cluster.
//   - A snapshot takes effect when it is complete. An incomplete one is dropped.
//   - A cluster that is missing from a snapshot is disengaged with [ReasonUnspecified], since the reason is unknown. Do not
//     treat that as [ReasonDeleted].
//   - While the daemon is unreachable, no cluster is disengaged. The watch retries with backoff and jitter, and treats a
//     stream that missed three heartbeats as dead.
//   - A sharded daemon owns its clusters for a limited time, which the watch renews, and measures with a clock that also
//     advances while the machine is suspended. When that time expires, all clusters are disengaged with
//     [ReasonOwnershipLost], since another daemon may engage them.
//   - Only errors that a retry cannot fix end a watch: see [IsTerminal].
//
// # Configuration
//
// Without explicit [Options] the environment configures the client, with the same variables as for the Python client:
//
//	MILO_DISCOVERY_ADDRESS           unix:///path or HOST:PORT; default unix:///run/milo-discovery/discovery.sock
//	MILO_DISCOVERY_TOKEN_FILE        a bearer token, read again for each call
//	MILO_DISCOVERY_CA_FILE           the CA of the daemon's certificate; enables TLS
//	MILO_DISCOVERY_CERTIFICATE_FILE  a client certificate, read again for each connection
//	MILO_DISCOVERY_KEY_FILE          its private key
//	MILO_DISCOVERY_SERVER_UID        the user that must run the server of the Unix socket
//
// Package discoverytest provides a fake daemon for tests. The module go.miloapis.com/discovery/multicluster provides a
// multicluster-runtime provider for operators.
package discovery
