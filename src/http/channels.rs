//! Which channels are occupied, in the whole cluster.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use super::input::{self, Page};
use super::{AppState, Caller, Problem, answer, presence};
use crate::cluster::Statistics;
use crate::dialects;
use crate::json;

/// `GET /v1/channels`
pub async fn list(
    caller: Caller,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let page: Page = input::query(&request)?;
    let (limit, after) = (page.limit()?, page.after()?);
    let prefix = page.prefix.as_deref().unwrap_or_default();
    // Closed ones are listed to who may read them and asks for them.
    let is_open = dialects::is_closed(prefix) && caller.is_service();
    let is_shown = |name: &str| is_open || !dialects::is_closed(name);
    let wanted = |name: &str| {
        name.starts_with(prefix) && is_shown(name) && after.as_deref().is_none_or(|after| name > after)
    };
    let mut names: Vec<Arc<str>> = state
        .rosters
        .all()
        .filter(|(name, roster)| roster.snapshot.online() > 0 && wanted(name))
        .map(|(name, _)| name)
        .collect();
    let elsewhere = state.cluster.channels().await?;
    names.extend(elsewhere.iter().filter(|name| wanted(name)).map(|name| Arc::from(name.as_str())));
    let names = first(names, limit + 1);
    let page = &names[..limit.min(names.len())];
    let next = page.last().filter(|_| names.len() > limit).map(|last| input::cursor(last));

    let page: Vec<&str> = page.iter().map(|name| &**name).collect();
    let counts = presence::occupancies(&state, &page).await?;
    // A channel may have emptied since it was listed.
    let occupied = page.into_iter().zip(counts).filter(|(_, occupancy)| occupancy.online > 0);
    let mut body = Vec::with_capacity(64 * limit.min(names.len()) + 32);
    body.extend_from_slice(b"{\"channels\":");
    presence::write_counts(&mut body, occupied);
    body.extend_from_slice(b",\"next\":");
    json::optional_string(&mut body, next.as_deref());
    body.push(b'}');
    Ok(answer::json(StatusCode::OK, body))
}

/// The first `count` of `names` in order. A name may be there twice, from here and from Redis.
fn first(mut names: Vec<Arc<str>>, count: usize) -> Vec<Arc<str>> {
    if names.len() > 2 * count {
        names.select_nth_unstable(2 * count);
        names.truncate(2 * count);
    }
    names.sort_unstable();
    names.dedup();
    names.truncate(count);
    names
}

/// What was counted of a channel.
#[derive(serde::Serialize)]
struct Answer<'a> {
    channel: &'a str,
    #[serde(flatten)]
    statistics: Statistics,
}

/// `GET /v1/channels/{channel}/stats`: today (UTC), and the last seven days with it.
pub async fn statistics(
    caller: Caller,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let channel = input::channel(&request, &state.config.limits)?;
    caller.may_read(&channel)?;
    let statistics = state.cluster.statistics(&channel).await?;
    Ok(answer::value(StatusCode::OK, &Answer { channel: &channel, statistics }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_names_are_in_order_and_once_each() {
        let names = |text: &str| text.split(' ').map(Arc::from).collect::<Vec<Arc<str>>>();
        assert_eq!(first(names("c a b a c d e f g h"), 3), names("a b c"));
        assert_eq!(first(names("b a"), 3), names("a b"));
        assert_eq!(first(Vec::new(), 3), Vec::<Arc<str>>::new());
    }
}
