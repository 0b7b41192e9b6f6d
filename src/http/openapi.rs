//! The description of everything here in OpenAPI 3.1, written by hand, and served under `/openapi.json`.

use std::sync::LazyLock;

/// As it is served, with the version of this program.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let version = concat!("\"version\": \"", env!("CARGO_PKG_VERSION"), "\"");
    include_str!("openapi.json").replacen("\"version\": \"0.0.0\"", version, 1)
});

/// The document.
pub fn document() -> &'static str {
    &DOCUMENT
}

#[cfg(test)]
mod tests {
    use actix_web::App;
    use actix_web::http::Method;
    use actix_web::test::{TestRequest, call_service, init_service};
    use serde_json::Value;

    use super::super::tests::state;
    use super::*;

    fn parsed() -> Value {
        serde_json::from_str(document()).unwrap()
    }

    /// Every `$ref` in `value`.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value.as_str() {
                        Some(target) if name == "$ref" => found.push(target),
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn it_parses_and_every_reference_leads_somewhere_and_every_component_is_used() {
        let document = parsed();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50);
        for target in &found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
        for (kind, components) in document["components"].as_object().unwrap() {
            for name in components.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
                let target = format!("#/components/{kind}/{name}");
                // The data of events stands in text, which no schema can describe.
                let told = kind == "schemas" && matches!(name.as_str(), "Snapshot" | "Diff");
                assert!(told || found.contains(&target.as_str()), "{target} is not used");
            }
        }
    }

    #[actix_web::test]
    async fn every_path_and_method_in_it_is_there_and_no_other() {
        let state = state(&[]);
        let app = init_service(App::new().configure(|cfg| crate::http::configure(cfg, state.clone()))).await;
        let document = parsed();
        for (path, methods) in document["paths"].as_object().unwrap() {
            // Sockets are mounted by the server.
            if ["/socket/", "/realtime/v1/websocket", "/app/"].iter().any(|begin| path.starts_with(begin)) {
                continue;
            }
            let uri = path.replace("/apps/{id}", "/apps/demo").replace(['{', '}'], "");
            let methods: Vec<String> =
                methods.as_object().unwrap().keys().map(|name| name.to_uppercase()).collect();
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
                let call = TestRequest::with_uri(&uri).method(Method::from_bytes(method.as_bytes()).unwrap());
                let status = call_service(&app, call.to_request()).await.status().as_u16();
                // What GET answers is answered to HEAD too, except a stream, which would have no end.
                let alike = method == "HEAD"
                    && methods.iter().any(|known| known == "GET")
                    && !path.ends_with("/events");
                if alike || methods.iter().any(|known| known == method) {
                    assert!(!matches!(status, 404 | 405), "{method} {path}: {status}");
                } else {
                    assert_eq!(status, 405, "{method} {path}");
                }
            }
        }
    }
}
