//! The demo page, the browser library and the description of the calls, built into the program.

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use actix_web::{HttpRequest, HttpResponse, web};

use super::{openapi, resource};

/// A file as it is served.
#[derive(Clone, Copy)]
struct Page {
    path: &'static str,
    kind: &'static str,
    body: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Every file under `static`, at its own path.
macro_rules! pages {
    ($($path:literal => $file:literal, $kind:expr;)*) => {
        &[$(Page { path: $path, kind: $kind, body: include_str!(concat!("../../static/", $file)) }),*]
    };
}

const HTML: &str = "text/html; charset=utf-8";

const PAGES: &[Page] = pages! {
    "/" => "index.html", HTML;
    "/style.css" => "style.css", "text/css; charset=utf-8";
    "/favicon.svg" => "favicon.svg", "image/svg+xml";
    "/app.js" => "app.js", SCRIPT;
    "/theme.js" => "theme.js", SCRIPT;
    "/storage.js" => "storage.js", SCRIPT;
    "/rollcall.js" => "rollcall.js", SCRIPT;
    "/wires/phoenix.js" => "wires/phoenix.js", SCRIPT;
    "/wires/supabase.js" => "wires/supabase.js", SCRIPT;
    "/wires/pusher.js" => "wires/pusher.js", SCRIPT;
    "/wires/events.js" => "wires/events.js", SCRIPT;
    "/examples/" => "examples/index.html", HTML;
    "/examples/page.js" => "examples/page.js", SCRIPT;
    "/examples/supabase.js" => "examples/supabase.js", SCRIPT;
    "/examples/phoenix.js" => "examples/phoenix.js", SCRIPT;
    "/examples/pusher.js" => "examples/pusher.js", SCRIPT;
    "/examples/echo.js" => "examples/echo.js", SCRIPT;
    "/examples/rest.js" => "examples/rest.js", SCRIPT;
    "/examples/curl.sh" => "examples/curl.sh", "text/plain; charset=utf-8";
};

/// Only what the server itself serves runs, and no other site frames it.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; \
                      style-src 'self'; script-src 'self'; frame-ancestors 'none'; base-uri 'none'";

/// A route for each page.
pub fn routes(cfg: &mut web::ServiceConfig) {
    let openapi = Page { path: "/openapi.json", kind: "application/json", body: openapi::document() };
    for page in PAGES.iter().copied().chain([openapi]) {
        let tag = etag(page.body);
        let serve = move |request: HttpRequest| std::future::ready(serve(&request, page, &tag));
        cfg.service(
            resource(page.path, "GET, HEAD").route(web::get().to(serve.clone())).route(web::head().to(serve)),
        );
    }
}

fn serve(request: &HttpRequest, page: Page, tag: &str) -> HttpResponse {
    let known = request.headers().get(IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    let fresh = known.is_some_and(|known| matches(known, tag));
    let mut response = if fresh { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header((CONTENT_TYPE, HeaderValue::from_static(page.kind)))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-cache")))
        .insert_header((ETAG, tag))
        .insert_header((CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)))
        .insert_header((X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
        .insert_header((REFERRER_POLICY, HeaderValue::from_static("no-referrer")));
    if fresh { response.finish() } else { response.body(page.body) }
}

/// A tag that changes with the content (64-bit FNV-1a).
fn etag(body: &str) -> String {
    let hash = body
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("\"{hash:016x}\"")
}

/// Whether `If-None-Match` names `tag`.
fn matches(known: &str, tag: &str) -> bool {
    known.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == tag || one == "*")
}
