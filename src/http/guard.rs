//! Who may make a call, as extractors: a handler that takes one runs only for those it lets pass.

use std::future::{Ready, ready};
use std::ops::Deref;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::FutureExt as _;
use futures_util::future::{Either, LocalBoxFuture};

use super::{AppState, Problem};
use crate::admission::{self, Refusal};
use crate::dialects;

/// Whoever may read: anyone in `open` mode; in `session` mode a valid session or the service key.
pub struct Caller(admission::Caller);

impl Caller {
    /// Whether the channel may be read by this caller: closed ones are those of applications, which have an HTTP
    /// interface of their own, and private ones.
    ///
    /// # Errors
    /// A problem with status 403.
    pub fn may_read(&self, channel: &str) -> Result<(), Problem> {
        if dialects::is_closed(channel) && !self.is_service() {
            let why = "channels of applications and private ones are read with the service key alone";
            return Err(Problem::new(StatusCode::FORBIDDEN, why));
        }
        Ok(())
    }

    /// Whether it is a trusted backend.
    pub fn is_service(&self) -> bool {
        matches!(self.0, admission::Caller::Service)
    }
}

/// Anyone within the rate limits.
pub struct Guest(admission::Caller);

/// Somebody: a valid session or the service key, in every mode.
pub struct Known(admission::Caller);

/// A trusted backend: the holder of the service key.
pub struct Manager;

type Answer<T> = Either<Ready<Result<T, Problem>>, LocalBoxFuture<'static, Result<T, Problem>>>;

fn state(request: &HttpRequest) -> Result<web::Data<AppState>, Problem> {
    request
        .app_data::<web::Data<AppState>>()
        .cloned()
        .ok_or_else(|| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the server is not assembled"))
}

/// Checks the caller, at once where nothing has to be asked, and hands it to `pass`.
fn check<T: 'static>(
    request: &HttpRequest,
    pass: fn(&AppState, admission::Caller) -> Result<T, Refusal>,
) -> Answer<T> {
    let state = match state(request) {
        Ok(state) => state,
        Err(problem) => return Either::Left(ready(Err(problem))),
    };
    if let Some(caller) = state.admission.caller_at_once(request) {
        return Either::Left(ready(pass(&state, caller).map_err(Problem::from)));
    }
    let request = request.clone();
    let checking = async move {
        let caller = state.admission.caller(&request).await?;
        Ok(pass(&state, caller)?)
    };
    Either::Right(checking.boxed_local())
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Answer<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        check(request, |state, caller| state.admission.may_read(&caller).map(|()| Self(caller)))
    }
}

impl FromRequest for Guest {
    type Error = Problem;
    type Future = Answer<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        check(request, |_, caller| Ok(Self(caller)))
    }
}

impl FromRequest for Known {
    type Error = Problem;
    type Future = Answer<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        check(request, |state, caller| state.admission.known(caller).map(Self))
    }
}

impl FromRequest for Manager {
    type Error = Problem;
    type Future = Answer<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        check(request, |state, caller| state.admission.service(&caller).map(|()| Self))
    }
}

impl Deref for Caller {
    type Target = admission::Caller;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Deref for Known {
    type Target = admission::Caller;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Deref for Guest {
    type Target = admission::Caller;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
