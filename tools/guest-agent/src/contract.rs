//! The function contract, as the host sends it: the agent's own reading of `snapshot_format::manifest::FunctionContract`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// How events reach the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interface {
    Exec,
    Http,
    Lambda,
}

/// What the function is and how to start it. A field this agent does not know is refused: it would mean something.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    pub interface: Interface,
    pub command: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default = "root_dir")]
    pub workdir: String,
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub resident: bool,
    #[serde(default)]
    pub http: Option<HttpContract>,
    #[serde(default)]
    pub lambda: Option<LambdaContract>,
    /// Milliseconds.
    #[serde(default = "ready_timeout")]
    pub ready_timeout_ms: u64,
    /// Milliseconds; the host watches over it.
    #[serde(default, rename = "event_timeout_ms")]
    pub _event_timeout_ms: u64,
}

/// Where the function listens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpContract {
    pub port: u16,
    #[serde(default = "root_dir")]
    pub ready_path: String,
}

/// What a Runtime API client is told about itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LambdaContract {
    pub handler: String,
    #[serde(default = "function_name")]
    pub function_name: String,
    #[serde(default = "yes")]
    pub snap_start: bool,
}

fn root_dir() -> String {
    "/".to_owned()
}
fn ready_timeout() -> u64 {
    120_000
}
fn function_name() -> String {
    "function".to_owned()
}
fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_of_each_interface_is_read() {
        let exec: Contract = serde_json::from_str(
            r#"{"interface":"exec","command":["cat"],"env":{"A":"b"},"workdir":"/x","user":"1:2","resident":true,
                "ready_timeout_ms":5,"event_timeout_ms":6}"#,
        )
        .unwrap();
        assert_eq!((exec.interface, exec.resident, exec.ready_timeout_ms), (Interface::Exec, true, 5));
        let http: Contract =
            serde_json::from_str(r#"{"interface":"http","command":["x"],"http":{"port":80}}"#).unwrap();
        assert_eq!(http.http, Some(HttpContract { port: 80, ready_path: "/".into() }));
        let lambda: Contract =
            serde_json::from_str(r#"{"interface":"lambda","command":["x"],"lambda":{"handler":"a.b"}}"#)
                .unwrap();
        assert!(lambda.lambda.unwrap().snap_start);
    }

    #[test]
    fn a_field_that_the_agent_does_not_know_is_refused() {
        let json = r#"{"interface":"exec","command":["cat"],"drives":["data"]}"#;
        assert!(serde_json::from_str::<Contract>(json).is_err());
    }
}
