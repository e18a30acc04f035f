//! The subscriber with which the conformance kit tests this example.

use std::time::Duration;

use milo_discovery_subscriber::proto::{Cluster, ClusterFilter, DisengageReason, IssueKubeconfigRequest, Kubeconfig, WatchClustersRequest};
use milo_discovery_subscriber::session::Event;
use milo_discovery_subscriber::{connect, kubeconfig, watch};
use serde_json::{json, Value};
use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::{Code, Status};

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn text(kubeconfig: &Kubeconfig) -> String {
    String::from_utf8_lossy(&kubeconfig.kubeconfig).into_owned()
}

fn short(reason: DisengageReason) -> &'static str {
    reason.as_str_name().trim_start_matches("DISENGAGE_REASON_")
}

fn print(line: Value) {
    println!("{line}");
}

fn print_event(event: Event) {
    let line = |kind: &str, cluster: Cluster, reason: &str, kubeconfig: Option<Kubeconfig>| {
        let draining = cluster.draining.as_ref().map(|draining| short(draining.reason()));
        json!({
            "event": kind, "cluster": cluster.name, "uid": cluster.uid, "endpoint": cluster.endpoint,
            "suspended": cluster.suspended, "draining": draining, "reason": reason,
            "kubeconfig": kubeconfig.as_ref().map(text),
        })
    };
    print(match event {
        Event::Engaged(cluster, kubeconfig) => line("ENGAGED", cluster, "", kubeconfig),
        Event::Updated(cluster) => line("UPDATED", cluster, "", None),
        Event::Renewed(cluster, kubeconfig) => line("KUBECONFIG", cluster, "", Some(kubeconfig)),
        Event::Disengaged(cluster, reason) => line("DISENGAGED", cluster, short(reason), None),
    });
}

async fn issue(address: &str, name: &str) -> Result<Kubeconfig, Status> {
    let request = IssueKubeconfigRequest { cluster: name.into(), ..Default::default() };
    let issued = connect(address).await?.issue_kubeconfig(request).await?.into_inner().kubeconfig.unwrap_or_default();
    kubeconfig::read(&issued).map_err(Status::internal)?;
    Ok(issued)
}

fn code(error: &Status) -> &'static str {
    match error.code() {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unavailable => "UNAVAILABLE",
        _ => "UNKNOWN",
    }
}

#[tokio::main]
async fn main() {
    let address = variable("MILO_DISCOVERY_ADDRESS");
    let heartbeat = Duration::from_secs_f64(variable("CONFORMANCE_HEARTBEAT_S").parse().expect("CONFORMANCE_HEARTBEAT_S must be a number of seconds"));
    let request = WatchClustersRequest {
        filter: Some(ClusterFilter { label_selector: variable("CONFORMANCE_LABEL_SELECTOR"), ..Default::default() }),
        include_kubeconfigs: !variable("CONFORMANCE_KUBECONFIGS").is_empty(),
        ..Default::default()
    };
    let followed = address.clone();
    tokio::spawn(async move {
        let error = watch(&followed, request, heartbeat, print_event).await;
        print(json!({"event": "FATAL", "code": code(&error)}));
    });
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = commands.next_line().await {
        if let Some(name) = line.strip_prefix("kubeconfig ") {
            print(match issue(&address, name).await {
                Ok(issued) => json!({"event": "ISSUED", "cluster": name, "kubeconfig": text(&issued)}),
                Err(error) => json!({"event": "FAILED", "cluster": name, "code": code(&error)}),
            });
        } else if line == "stop" {
            break;
        }
    }
    std::process::exit(0);
}
