//! A limit by address as a middleware for actix-web, for other services that share the Redis:
//! `App::new().wrap(RateLimitMiddleware::new(limiter, 300))`.
//!
//! Over the limit the answer is 429 as a problem document (RFC 9457), with `Retry-After`; every answer tells what
//! is left. Rollcall's own calls are checked by its admission, which also knows users.

use std::future::{Ready, ready};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::body::EitherBody;
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::http::header::RETRY_AFTER;
use actix_web::{Error, HttpResponse};
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use ipnet::IpNet;

use super::{Allowances, Decision, RateLimiter, Subject};
use crate::address::client_address;

/// One limit by address, ready to be asked for each request or wrapped around an application.
#[derive(Clone)]
pub struct RateLimitMiddleware {
    pub limiter: RateLimiter,
    /// Calls per 60 s from one address; 0 is no limit.
    pub limit: u32,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted: Arc<[IpNet]>,
}

impl RateLimitMiddleware {
    /// Lets `limit` calls per 60 s from one address pass (IPv6 counts by /64). No proxy is believed.
    pub fn new(limiter: RateLimiter, limit: u32) -> Self {
        Self { limiter, limit, trusted: Arc::new([]) }
    }

    /// The same behind `proxies`.
    #[must_use]
    pub fn behind(mut self, proxies: &[IpNet]) -> Self {
        self.trusted = proxies.into();
        self
    }

    /// Counts one call from `addr` and says whether it may go ahead.
    pub async fn check_ip(&self, addr: &IpAddr) -> Decision {
        self.limiter.check(Subject::Ip(*addr), self.limit).await
    }
}

impl<S, B> Transform<S, ServiceRequest> for RateLimitMiddleware
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Transform = RateLimited<S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: S) -> Self::Future {
        ready(Ok(RateLimited { gate: self.clone(), service: Rc::new(service) }))
    }
}

/// A service with the limit around it.
pub struct RateLimited<S> {
    gate: RateLimitMiddleware,
    service: Rc<S>,
}

impl<S, B> Service<ServiceRequest> for RateLimited<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Error>>;

    forward_ready!(service);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let (gate, service) = (self.gate.clone(), Rc::clone(&self.service));
        async move {
            let addr = client_address(request.peer_addr(), request.headers(), &gate.trusted);
            let decision = gate.check_ip(&addr).await;
            let allowances = Allowances { address: Some(decision), user: None };
            let mut response = if decision.allowed {
                service.call(request).await?.map_into_left_body()
            } else {
                request.into_response(over(&decision)).map_into_right_body()
            };
            allowances.write(response.headers_mut());
            Ok(response)
        }
        .boxed_local()
    }
}

fn over(decision: &Decision) -> HttpResponse {
    HttpResponse::TooManyRequests()
        .insert_header((RETRY_AFTER, decision.whole_seconds()))
        .content_type("application/problem+json")
        .body(
            r#"{"type":"about:blank","title":"Too Many Requests","status":429,"detail":"too many calls from this address"}"#,
        )
}

#[cfg(test)]
mod tests {
    use actix_web::test::{TestRequest, call_service, init_service};
    use actix_web::{App, web};

    use super::*;

    #[actix_web::test]
    async fn it_stands_before_any_application() {
        let gate =
            RateLimitMiddleware::new(RateLimiter::new(None), 2).behind(&["127.0.0.0/8".parse().unwrap()]);
        let app = App::new().wrap(gate).route("/", web::get().to(|| async { "hello" }));
        let app = init_service(app).await;
        let from = |addr: &str| {
            let peer = "127.0.0.1:9".parse().unwrap();
            TestRequest::get()
                .peer_addr(peer)
                .insert_header(("x-forwarded-for", addr.to_owned()))
                .to_request()
        };
        for left in ["1", "0"] {
            let response = call_service(&app, from("192.0.2.1")).await;
            assert_eq!(response.status(), 200);
            let told = response.headers().get("ratelimit").unwrap().to_str().unwrap();
            assert!(told.starts_with(&format!("\"address\";r={left};t=")), "{told}");
        }
        let response = call_service(&app, from("192.0.2.1")).await;
        assert_eq!(response.status(), 429);
        assert!(response.headers().contains_key("retry-after"));
        assert_eq!(response.headers().get("ratelimit-policy").unwrap(), "\"address\";q=2;w=60");
        assert_eq!(call_service(&app, from("192.0.2.2")).await.status(), 200);
    }
}
