//! The OpenAPI document as served: the generated one, and what the generator cannot know.
//!
//! Its invariant: no route and no schema is described here by hand, but those two that are no methods of a proto.

use serde_json::{Map, Value, json};
use tamdao_proto::OPENAPI;

/// The document, JSON.
pub fn document() -> Vec<u8> {
    let generated: Value = serde_json::from_str(OPENAPI).expect("our build wrote valid JSON");
    serde_json::to_vec(&completed(generated)).expect("a JSON value can be written")
}

fn completed(mut document: Value) -> Value {
    document["info"]["description"] = json!("A private cloud. The same contract is served over gRPC.");
    document["info"]["license"] = json!({ "name": "Apache-2.0", "identifier": "Apache-2.0" });
    document["servers"] = json!([{ "url": "/", "description": "any controller answers any request" }]);
    document["security"] = json!([{ "token": [] }]);
    document["components"]["securitySchemes"] = json!({ "token": { "type": "http", "scheme": "bearer", "description": "an admin's token, a token of the cloud, or an ID token of the identity provider" } });
    document["components"]["schemas"]["google.rpc.Status"] = status_schema();
    if let Some(paths) = document["paths"].as_object_mut() {
        for (path, operations) in paths.iter_mut() {
            if path.ends_with(":watch") {
                add_event_stream(operations);
            }
        }
        for prefix in ["/v1/images/{name}", "/v1/agencies/{agency}/images/{name}"] {
            paths.insert(format!("{prefix}/content"), content_route(prefix.contains("{agency}")));
        }
    }
    document
}

/// A watch is a stream; which form it has is the client's choice.
fn add_event_stream(operations: &mut Value) {
    let Some(content) = operations.pointer_mut("/get/responses/200/content").and_then(Value::as_object_mut)
    else {
        return;
    };
    let schema = content.get("application/json").cloned().unwrap_or_else(|| json!({}));
    for form in ["text/event-stream", "application/x-ndjson"] {
        content.entry(form).or_insert_with(|| schema.clone());
    }
}

/// An error, as `serve/rest.rs` tells it.
fn status_schema() -> Value {
    json!({
        "type": "object",
        "description": "An error: what happened, and in details why and what would help.",
        "required": ["code", "message", "details"],
        "properties": {
            "code": { "type": "integer", "format": "int32", "description": "A code of google.rpc.Code." },
            "message": { "type": "string" },
            "details": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["@type"],
                    "properties": {
                        "@type": { "type": "string" },
                        "reason": { "type": "string" },
                        "domain": { "type": "string" },
                        "metadata": { "type": "object", "additionalProperties": { "type": "string" } },
                        "field_violations": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "properties": {
                                    "field": { "type": "string" },
                                    "description": { "type": "string" },
                                },
                            },
                        },
                    },
                },
            },
        },
    })
}

/// The bytes of an image, which are no message.
fn content_route(of_agency: bool) -> Value {
    let mut parameters = vec![path_parameter("name")];
    if of_agency {
        parameters.insert(0, path_parameter("agency"));
    }
    parameters.push(json!({
        "in": "query", "name": "gzip", "required": false, "schema": { "type": "boolean" },
        "description": "The file is compressed so and is stored unpacked.",
    }));
    let answer = |description: &str, schema: &str| {
        let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
        json!({ "description": description, "content": { "application/json": { "schema": schema } } })
    };
    let mut responses = Map::new();
    responses.insert("200".into(), answer("The image as stored.", "tamdao.v1.Image"));
    responses.insert("default".into(), answer("An error.", "google.rpc.Status"));
    json!({
        "put": {
            "operationId": if of_agency { "UploadAgencyImageContent" } else { "UploadImageContent" },
            "summary": "Sends the bytes of an image that was created without url.",
            "parameters": parameters,
            "requestBody": {
                "required": true,
                "content": { "application/octet-stream": { "schema": { "type": "string", "format": "binary" } } },
            },
            "responses": responses,
        },
    })
}

fn path_parameter(name: &str) -> Value {
    json!({ "in": "path", "name": name, "required": true, "schema": { "type": "string" } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let document: Value = serde_json::from_slice(&document()).unwrap();
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100);
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        assert!(document.pointer("/paths/~1v1~1images~1{name}~1content/put").is_some());
    }

    #[test]
    fn watches_offer_server_sent_events() {
        let document: Value = serde_json::from_slice(&document()).unwrap();
        let content = document.pointer("/paths/~1v1~1nodes:watch/get/responses/200/content").unwrap();
        assert!(content.get("text/event-stream").is_some(), "{content}");
    }
}
