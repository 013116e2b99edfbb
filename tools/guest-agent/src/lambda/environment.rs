//! What a runtime client is told about itself by its environment.

use std::collections::BTreeMap;

use crate::contract::{Contract, LambdaContract};

/// The region of a function that is in none.
pub const REGION: &str = "us-east-1";

/// Variables beneath the contract's own.
pub fn defaults(contract: &Contract, lambda: &LambdaContract, memory: u64) -> BTreeMap<String, String> {
    let initialization = if lambda.snap_start { "snap-start" } else { "on-demand" };
    let name = &lambda.function_name;
    let memory_mib = (memory >> 20).to_string();
    let group = format!("/aws/lambda/{name}");
    let variables = [
        ("_HANDLER", lambda.handler.as_str()),
        ("AWS_DEFAULT_REGION", REGION),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", &memory_mib),
        ("AWS_LAMBDA_FUNCTION_NAME", name),
        ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", initialization),
        ("AWS_LAMBDA_LOG_GROUP_NAME", &group),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "ember"),
        ("AWS_REGION", REGION),
        ("LAMBDA_TASK_ROOT", &contract.workdir),
        ("TZ", ":UTC"),
    ];
    variables.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The contract with the one variable that is not the user's to choose.
pub fn with_address(contract: &Contract, port: u16) -> Contract {
    let mut contract = contract.clone();
    contract.env.insert("AWS_LAMBDA_RUNTIME_API".to_owned(), format!("127.0.0.1:{port}"));
    contract
}
