//! Maintains one ConfigMap in each project: creates it if it is missing, and reverts changes to it.
//!
//!     MILO_DISCOVERY_ADDRESS=unix:///run/milo-discovery/discovery.sock cargo run

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::TryStreamExt;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::ByteString;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::client::{Body, ConfigExt};
use kube::runtime::{watcher, WatchStreamExt};
use milo_discovery_subscriber::kubeconfig::{read, Access};
use milo_discovery_subscriber::proto::{Kubeconfig, WatchClustersRequest};
use milo_discovery_subscriber::session::Event;
use milo_discovery_subscriber::watch;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::watch::{channel, Receiver, Sender};
use tokio::task::JoinHandle;

const NAME: &str = "greeting";
const NAMESPACE: &str = "default";

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The task for one cluster, and the channel for its newest kubeconfig.
struct Work {
    task: JoinHandle<()>,
    kubeconfig: Sender<Option<Kubeconfig>>,
}

#[tokio::main]
async fn main() {
    let address = std::env::var("MILO_DISCOVERY_ADDRESS").unwrap_or("unix:///run/milo-discovery/discovery.sock".into());
    let request = WatchClustersRequest { include_kubeconfigs: true, ..Default::default() };
    let mut work: HashMap<String, Work> = HashMap::new();
    let mut terminated = signal(SignalKind::terminate()).expect("cannot handle SIGTERM");
    let watching = watch(&address, request, Duration::from_secs(10), |event| match event {
        Event::Engaged(cluster, first) => {
            println!("working in {}", cluster.name);
            let (kubeconfig, renewed) = channel(first);
            let task = tokio::spawn(operate(cluster.name.clone(), renewed));
            work.insert(cluster.name, Work { task, kubeconfig });
        }
        Event::Renewed(cluster, renewed) => {
            work.get(&cluster.name).map(|work| work.kubeconfig.send(Some(renewed)));
        }
        Event::Updated(_) => {}
        Event::Disengaged(cluster, reason) => {
            if let Some(work) = work.remove(&cluster.name) {
                work.task.abort();
            }
            println!("stopped working in {}: {}", cluster.name, reason.as_str_name());
        }
    });
    let error = tokio::select! {
        _ = terminated.recv() => return, // sent when the pod terminates
        error = watching => error,
    };
    eprintln!("subscription refused: {error}");
    std::process::exit(1);
}

/// Maintain the ConfigMap until the task is aborted.
async fn operate(name: String, mut kubeconfig: Receiver<Option<Kubeconfig>>) {
    loop {
        if let Err(error) = follow(&name, &mut kubeconfig).await {
            eprintln!("{name}: {error}");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn follow(name: &str, kubeconfig: &mut Receiver<Option<Kubeconfig>>) -> Result<(), Error> {
    let first = kubeconfig.wait_for(Option::is_some).await?.clone().unwrap_or_default();
    let client = client(read(&first)?, kubeconfig.clone())?;
    let greetings: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    keep(&greetings, name).await?;
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut changes = std::pin::pin!(watcher(greetings.clone(), only).default_backoff());
    while let Some(event) = changes.try_next().await? {
        if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
            keep(&greetings, name).await?;
        }
    }
    Ok(())
}

async fn keep(greetings: &Api<ConfigMap>, name: &str) -> Result<(), Error> {
    let data = BTreeMap::from([("greeting".to_owned(), format!("Hello, {name}"))]);
    match greetings.get_opt(NAME).await? {
        Some(found) if found.data.as_ref() == Some(&data) => return Ok(()),
        Some(mut found) => {
            found.data = Some(data);
            greetings.replace(NAME, &PostParams::default(), &found).await?;
        }
        None => {
            let metadata = ObjectMeta { name: Some(NAME.into()), ..Default::default() };
            let greeting = ConfigMap { metadata, data: Some(data), ..Default::default() };
            greetings.create(&PostParams::default(), &greeting).await?;
        }
    }
    println!("greeted {name}");
    Ok(())
}

/// Create a client that sends the newest token with each request. If the newest kubeconfig is for another server, requests are sent
/// without a token: they fail, and `operate` creates a new client.
fn client(access: Access, kubeconfig: Receiver<Option<Kubeconfig>>) -> Result<kube::Client, Error> {
    let server = access.server;
    let mut config = kube::Config::new(server.parse()?);
    if let Some(data) = access.ca_data {
        let ByteString(pem) = serde_json::from_value(data.into())?;
        config.root_cert = Some(pem::parse_many(pem)?.into_iter().map(|each| each.into_contents()).collect());
    }
    let connector = config.rustls_https_connector()?;
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .map_request(move |mut request: http::Request<Body>| {
            let newest = kubeconfig.borrow().as_ref().and_then(|newest| read(newest).ok());
            let token = newest.filter(|access| access.server == server).map(|access| access.token);
            let header = token.and_then(|token| http::HeaderValue::try_from(format!("Bearer {token}")).ok());
            if let Some(mut header) = header {
                header.set_sensitive(true);
                request.headers_mut().insert(http::header::AUTHORIZATION, header);
            }
            request
        })
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(kube::Client::new(service, config.default_namespace))
}
