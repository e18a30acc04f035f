//! Reads kubeconfigs with a token, in the form that the daemon writes: JSON. Everything else is refused, since a server
//! that impersonates the daemon could send a program to run, a file to read or a proxy.

use serde_json::{Map, Value};

use crate::proto::Kubeconfig;

/// The API server of a kubeconfig, and the credential for it.
pub struct Access {
    pub server: String,
    pub ca_data: Option<String>,
    pub token: String,
}

pub fn read(kubeconfig: &Kubeconfig) -> Result<Access, &'static str> {
    let file: Value = serde_json::from_slice(&kubeconfig.kubeconfig).map_err(|_| "it is not JSON")?;
    let top = object(&file, &["apiVersion", "kind", "current-context", "contexts", "clusters", "users"])?;
    only(top, "contexts", "context", &["cluster", "user"])?;
    let cluster = only(top, "clusters", "cluster", &["server", "certificate-authority-data"])?;
    let user = only(top, "users", "user", &["token"])?;
    let text = |from: &Map<String, Value>, name| from.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Access {
        server: text(cluster, "server").ok_or("it has no server")?,
        ca_data: text(cluster, "certificate-authority-data"),
        token: text(user, "token").filter(|token| !token.is_empty()).ok_or("it has no token")?,
    })
}

fn only<'a>(top: &'a Map<String, Value>, list: &str, inner: &str, fields: &[&str]) -> Result<&'a Map<String, Value>, &'static str> {
    match top.get(list).and_then(Value::as_array).map(Vec::as_slice) {
        Some([entry]) => object(object(entry, &["name", inner])?.get(inner).unwrap_or(&Value::Null), fields),
        _ => Err("it does not have exactly one cluster, one user and one context"),
    }
}

fn object<'a>(value: &'a Value, fields: &[&str]) -> Result<&'a Map<String, Value>, &'static str> {
    let object = value.as_object().ok_or("it is not of the form that the daemon writes")?;
    let is_known = object.keys().all(|name| fields.contains(&name.as_str()));
    is_known.then_some(object).ok_or("it has fields that the daemon does not write")
}
