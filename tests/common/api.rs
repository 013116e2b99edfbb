//! Holds what the daemon answers against docs/openapi.yaml.
//!
//! Of JSON Schema this knows the words that are used there. Objects are closed: a member that is not described is as wrong as one
//! that is missing.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_json::Value;

use super::serve::Response;

fn described() -> &'static Value {
    static DESCRIBED: OnceLock<Value> = OnceLock::new();
    DESCRIBED.get_or_init(|| serde_saphyr::from_str(include_str!("../../docs/openapi.yaml")).unwrap())
}

/// What is described at a place of the document.
#[track_caller]
pub fn component(pointer: &str) -> &'static Value {
    described().pointer(pointer).unwrap_or_else(|| panic!("{pointer} is not described"))
}

#[track_caller]
fn resolved(node: &'static Value) -> &'static Value {
    let referred = node["$ref"].as_str().and_then(|to| to.strip_prefix('#'));
    referred.map_or(node, |pointer| resolved(component(pointer)))
}

/// The answer to this request is among those that are described.
#[track_caller]
pub fn describes(method: &str, path: &str, response: &Response) {
    let status = response.status.to_string();
    let at_path = path_item(path);
    let own = at_path.and_then(|item| item[method.to_lowercase()]["responses"].get(&status));
    let expected = own.map_or_else(|| anywhere(&status), resolved);
    if let (405, Some(item)) = (response.status, at_path) {
        let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
        let methods: BTreeSet<String> = methods.map(|method| method.to_uppercase()).collect();
        let allowed = response.header("allow").unwrap_or_default().split(", ").map(str::to_owned);
        assert_eq!(allowed.collect::<BTreeSet<_>>(), methods, "{method} {path}");
    }
    let found = check_headers(expected, response).and_then(|()| check_body(expected, response));
    if let Err(why) = found {
        panic!("{method} {path}, {status}, is not as docs/openapi.yaml says: {why}: {response:?}");
    }
}

/// What is described of a path, whatever the function's name.
fn path_item(path: &str) -> Option<&'static Value> {
    let fits = |template: &str| {
        let (parts, given): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
        parts.len() == given.len()
            && parts.iter().zip(given).all(|(part, given)| part.starts_with('{') || *part == given)
    };
    let paths = described()["paths"].as_object().unwrap();
    paths.iter().find(|(template, _)| fits(template)).map(|(_, item)| item)
}

/// A refusal that any request may meet; those are in the words at the beginning.
#[track_caller]
fn anywhere(status: &str) -> &'static Value {
    let words = described()["info"]["description"].as_str().unwrap();
    assert!(words.contains(&format!("{status} ")), "{status} is described nowhere");
    component("/components/responses/Refused")
}

fn check_headers(expected: &'static Value, response: &Response) -> Result<(), String> {
    let no_headers = serde_json::Map::new();
    let headers = expected["headers"].as_object().unwrap_or(&no_headers);
    for (name, _) in &response.headers {
        let is_ours = name.starts_with("Ember-") || name == "Retry-After";
        if is_ours && !headers.contains_key(name) {
            return Err(format!("header {name} is not described"));
        }
    }
    for (name, header) in headers {
        let schema = &header["schema"];
        match response.header(name) {
            Some(value) if schema["type"] == "integer" => {
                value.parse::<u64>().map_err(|e| format!("header {name}: {e}"))?;
            }
            Some(value) => fits(&expected["headers"][name]["schema"], &Value::from(value), name)?,
            None if schema.get("const").is_some() => return Err(format!("header {name} is missing")),
            None => {}
        }
    }
    Ok(())
}

fn check_body(expected: &'static Value, response: &Response) -> Result<(), String> {
    let kind = response.header("content-type").and_then(|value| value.split(';').next()).unwrap_or_default();
    let Some(content) = expected.get("content") else {
        return if response.body.is_empty() { Ok(()) } else { Err("no body is described".to_owned()) };
    };
    let described = content.get(kind).or_else(|| content.get("*/*"));
    let described = described.ok_or_else(|| format!("content of type {kind:?} is not described"))?;
    if kind != "application/json" || content.get(kind).is_none() {
        return Ok(());
    }
    let body: Value = serde_json::from_slice(&response.body).map_err(|e| e.to_string())?;
    fits(&described["schema"], &body, "body")
}

/// Whether a value is what a schema says.
fn fits(schema: &'static Value, value: &Value, at: &str) -> Result<(), String> {
    let schema = resolved(schema);
    let wrong = || Err(format!("{at} is {value}, not {schema}"));
    if schema.get("const").is_some_and(|only| only != value) {
        return wrong();
    }
    if schema["enum"].as_array().is_some_and(|allowed| !allowed.contains(value)) {
        return wrong();
    }
    let types = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    if !types.iter().any(|kind| kind.is_null() || is_of(value, kind)) {
        return wrong();
    }
    if let Some(number) = value.as_u64()
        && (schema["minimum"].as_u64().is_some_and(|least| number < least)
            || schema["maximum"].as_u64().is_some_and(|most| number > most))
    {
        return wrong();
    }
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(&schema["items"], item, &format!("{at}[{n}]"))?;
    }
    let Some(members) = value.as_object() else { return Ok(()) };
    for required in schema["required"].as_array().into_iter().flatten() {
        if !members.contains_key(required.as_str().unwrap()) {
            return Err(format!("{at} is without {required}"));
        }
    }
    for (name, member) in members {
        let described = schema["properties"].get(name);
        let described = described.ok_or_else(|| format!("{name} of {at} is not described"))?;
        fits(described, member, &format!("{at}.{name}"))?;
    }
    Ok(())
}

fn is_of(value: &Value, kind: &Value) -> bool {
    match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some("null") => value.is_null(),
        _ => panic!("{kind} is not known here"),
    }
}
