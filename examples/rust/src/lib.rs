//! A client of milo-discoveryd in Rust, to copy into programs. It implements the rules of the stream, and reconnects.

pub mod kubeconfig;
pub mod session;

/// The code that build.rs generates from the proto file.
pub mod proto {
    #![allow(clippy::all)]
    tonic::include_proto!("milo.discovery.v1");
}

use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use proto::discovery_service_client::DiscoveryServiceClient;
use proto::WatchClustersRequest;
use session::{Event, Session};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tonic_types::StatusExt;

const MAX_MESSAGE_BYTES: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
const HEALTHY: Duration = Duration::from_secs(10); // a stream that lasted this long resets the backoff
const FINAL: [Code; 5] =
    [Code::InvalidArgument, Code::PermissionDenied, Code::Unauthenticated, Code::Unimplemented, Code::FailedPrecondition];

pub type Client = DiscoveryServiceClient<Channel>;

/// Connect to the daemon at `unix:///path`.
pub async fn connect(address: &str) -> Result<Client, Status> {
    let invalid = || Status::invalid_argument(format!("address {address} is not of the form unix:///path"));
    let path = address.strip_prefix("unix://").ok_or_else(invalid)?.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(DiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// Call the handler with each event, and reconnect after a broken stream. Returns only errors that a retry cannot fix.
pub async fn watch(address: &str, request: WatchClustersRequest, heartbeat: Duration, mut handle: impl FnMut(Event)) -> Status {
    let mut session = Session::new();
    let mut backoff = FIRST_BACKOFF;
    loop {
        let mut request = request.clone();
        request.resume_revision = session.open();
        request.heartbeat_interval = heartbeat.try_into().ok();
        request.accepts_pending_sources = true;
        let mut connected_at = None;
        let error = read_stream(address, request, 3 * heartbeat, |batch| {
            let events = session.receive(batch)?;
            connected_at.get_or_insert_with(Instant::now);
            events.into_iter().for_each(&mut handle);
            Ok(())
        })
        .await;
        if connected_at.is_some_and(|at| at.elapsed() >= HEALTHY) {
            backoff = FIRST_BACKOFF;
        }
        if FINAL.contains(&error.code()) {
            return error;
        }
        eprintln!("stream broken, reconnecting: {}", error.message());
        let asked = error.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        tokio::time::sleep(asked + backoff.mul_f64(rand::random_range(0.5..1.0))).await;
        backoff = LONGEST_BACKOFF.min(2 * backoff);
    }
}

/// Read one stream, on a new connection, until it ends.
async fn read_stream(
    address: &str,
    request: WatchClustersRequest,
    silence: Duration,
    mut receive: impl FnMut(proto::WatchClustersResponse) -> Result<(), session::Broken>,
) -> Status {
    let silent = |_| Status::unavailable(format!("no heartbeat for {silence:?}"));
    let opening = async { Ok::<_, Status>(connect(address).await?.watch_clusters(request).await?.into_inner()) };
    // The kernel accepts connections for a daemon that hangs, so the call may get no response.
    let mut stream = match tokio::time::timeout(silence, opening).await.map_err(silent).flatten() {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    loop {
        match tokio::time::timeout(silence, stream.message()).await.map_err(silent).flatten() {
            Ok(Some(batch)) if batch.sharded => {
                return Status::failed_precondition(format!(
                    "the daemon is sharded, but this client does not call RenewOwnership (revision {})",
                    batch.revision
                ));
            }
            Ok(Some(batch)) => {
                if let Err(broken) = receive(batch) {
                    return Status::unavailable(broken.0);
                }
            }
            Ok(None) => return Status::unavailable("the daemon ended the stream"),
            Err(error) => return error,
        }
    }
}
