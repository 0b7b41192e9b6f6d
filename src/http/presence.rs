//! Who is online: counts, pages of members, and where one user is.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use super::input::{self, Body, Page};
use super::{AppState, Caller, Problem, answer};
use crate::cluster::{Away, Location, Nearby, Occupancy, UserPresence};
use crate::dialects;
use crate::json;
use crate::presence::Snapshot;

/// Channels in one bulk call.
const MAX_BULK: usize = 1_000;
/// Metres: half the way around the earth, as far as anybody can be.
const MAX_RADIUS: f64 = 20_037_508.0;

/// `GET /v1/channels/{channel}/presence/count`
pub async fn count(
    caller: Caller,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let channel = input::channel(&request, &state.config.limits)?;
    caller.may_read(&channel)?;
    let occupancy = match state.rosters.get(&channel) {
        Some(roster) => {
            state.metrics.count_l1_hits.inc();
            of(&roster.snapshot)
        }
        None => {
            state.metrics.count_l1_misses.inc();
            state.remote.count(&channel).await?
        }
    };
    let mut body = Vec::with_capacity(channel.len() + 64);
    body.push(b'{');
    write_count(&mut body, &channel, occupancy);
    body.push(b'}');
    Ok(answer::json(StatusCode::OK, body))
}

/// What a bulk call asks for.
#[derive(serde::Deserialize)]
pub struct Bulk {
    channels: Vec<String>,
}

/// `POST /v1/presence/counts`
pub async fn counts(caller: Caller, body: Body, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    let Bulk { channels } = body.json()?;
    if channels.len() > MAX_BULK {
        return Err(Problem::bad_request(format!("at most {MAX_BULK} channels in one call")));
    }
    for name in &channels {
        input::check_channel(name, &state.config.limits)?;
        caller.may_read(name)?;
    }
    let names: Vec<&str> = channels.iter().map(String::as_str).collect();
    let found = occupancies(&state, &names).await?;
    let mut body = Vec::with_capacity(64 * channels.len() + 16);
    body.extend_from_slice(b"{\"counts\":");
    write_counts(&mut body, names.into_iter().zip(found));
    body.push(b'}');
    Ok(answer::json(StatusCode::OK, body))
}

/// How many are in each of `channels`: this node's own from L1, all others in one reading.
pub(super) async fn occupancies(state: &AppState, channels: &[&str]) -> Result<Vec<Occupancy>, Problem> {
    let here: Vec<_> = channels.iter().map(|name| state.rosters.get(name)).collect();
    let elsewhere: Vec<&str> =
        channels.iter().zip(&here).filter(|(_, roster)| roster.is_none()).map(|(name, _)| *name).collect();
    state.metrics.count_l1_hits.inc_by((channels.len() - elsewhere.len()) as u64);
    state.metrics.count_l1_misses.inc_by(elsewhere.len() as u64);
    let mut read = state.remote.counts(&elsewhere).await?.into_iter();
    Ok(here
        .iter()
        .map(|roster| match roster {
            Some(roster) => of(&roster.snapshot),
            None => read.next().unwrap_or_default(),
        })
        .collect())
}

/// Appends `[{"channel":…,"online":…,"connections":…},…]`.
pub(super) fn write_counts<'a>(out: &mut Vec<u8>, counts: impl IntoIterator<Item = (&'a str, Occupancy)>) {
    json::list(out, counts, |out, (channel, occupancy)| {
        out.push(b'{');
        write_count(out, channel, occupancy);
        out.push(b'}');
    });
}

fn of(snapshot: &Snapshot) -> Occupancy {
    Occupancy { online: snapshot.online(), connections: snapshot.connections }
}

fn write_count(out: &mut Vec<u8>, channel: &str, occupancy: Occupancy) {
    dialects::write_counts(out, channel, occupancy.online, occupancy.connections);
}

/// `GET /v1/channels/{channel}/presence`
pub async fn members(
    caller: Caller,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let channel = input::channel(&request, &state.config.limits)?;
    caller.may_read(&channel)?;
    let page: Page = input::query(&request)?;
    let (limit, after) = (page.limit()?, page.after()?);
    let body = match state.rosters.get(&channel) {
        Some(roster) => write_members(&channel, &roster.snapshot, limit, after.as_deref()),
        None => write_members(&channel, &*state.remote.roster(&channel).await?, limit, after.as_deref()),
    };
    Ok(answer::json(StatusCode::OK, body))
}

fn write_members(channel: &str, snapshot: &Snapshot, limit: usize, after: Option<&str>) -> Vec<u8> {
    let rest = snapshot.after(after);
    let page = &rest[..limit.min(rest.len())];
    let next = page.last().filter(|_| rest.len() > limit).map(|last| input::cursor(&last.user));
    let mut body = Vec::with_capacity(128 + 256 * page.len());
    body.push(b'{');
    write_count(&mut body, channel, of(snapshot));
    body.extend_from_slice(b",\"version\":");
    json::string(&mut body, &snapshot.version_name());
    body.extend_from_slice(b",\"members\":");
    json::list(&mut body, page, |out, member| {
        out.push(b'{');
        dialects::write_member_fields(out, member);
        out.push(b'}');
    });
    body.extend_from_slice(b",\"next\":");
    json::optional_string(&mut body, next.as_deref());
    body.push(b'}');
    body
}

/// A circle.
#[derive(serde::Deserialize)]
struct Circle {
    lat: f64,
    lon: f64,
    radius_m: f64,
    limit: Option<usize>,
}

/// Who is in it.
#[derive(serde::Serialize)]
struct NearbyAnswer<'a> {
    channel: &'a str,
    members: Vec<Near<'a>>,
}

#[derive(serde::Serialize)]
struct Near<'a> {
    user: &'a str,
    distance_m: f64,
    location: Location,
}

/// `GET /v1/channels/{channel}/presence/nearby`
pub async fn nearby(
    caller: Caller,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let channel = input::channel(&request, &state.config.limits)?;
    caller.may_read(&channel)?;
    let circle: Circle = input::query(&request)?;
    let Some(centre) = Location::new(circle.lat, circle.lon) else {
        return Err(Problem::bad_request("lat must be from -90 to 90, and lon from -180 to 180"));
    };
    let radius = circle.radius_m;
    if !(0.0..=MAX_RADIUS).contains(&radius) {
        return Err(Problem::bad_request(format!("radius_m must be from 0 to {MAX_RADIUS}")));
    }
    let limit = circle.limit.unwrap_or(100);
    if !(1..=1_000).contains(&limit) {
        return Err(Problem::bad_request("limit must be from 1 to 1000"));
    }
    let roster = state.rosters.get(&channel);
    let roster = roster.as_ref().map(|roster| &roster.snapshot);
    let found = state.cluster.nearby(&channel, centre, radius, limit, roster).await?;
    // Millimetres are more than anybody knows.
    let members = found.iter().map(|Nearby { user, location, distance }| Near {
        user,
        distance_m: (distance * 1_000.0).round() / 1_000.0,
        location: *location,
    });
    let answer = NearbyAnswer { channel: &channel, members: members.collect() };
    Ok(answer::value(StatusCode::OK, &answer))
}

/// What is asked of a user.
#[derive(serde::Deserialize)]
struct Asked {
    #[serde(default)]
    explain: bool,
}

/// `GET /v1/users/{user}/presence`
pub async fn user(
    caller: Caller,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let user = input::user(&request, &state.config.limits)?;
    let Asked { explain } = input::query(&request)?;
    if explain {
        state.admission.service(&caller)?;
    }
    let elsewhere = match state.cluster.user(&user).await {
        // Why somebody is online is asked most when something is wrong.
        Err(Away) if explain => UserPresence::default(),
        found => found?,
    };
    let mut channels: BTreeMap<Arc<str>, usize> =
        elsewhere.channels.into_iter().map(|(name, connections)| (name.into(), connections)).collect();
    // Of the channels that live here, this node knows at least as much as Redis.
    for (name, roster) in state.rosters.all() {
        match roster.snapshot.member(&user) {
            Some(member) => channels.insert(name, member.seats.len()),
            None => channels.remove(&name),
        };
    }
    if channels.keys().any(|name| dialects::is_closed(name)) && !caller.is_service() {
        channels.retain(|name, _| !dialects::is_closed(name));
    }
    let mut body = Vec::with_capacity(128);
    body.extend_from_slice(b"{\"user\":");
    json::string(&mut body, &user);
    body.extend_from_slice(if channels.is_empty() { b",\"online\":false" } else { b",\"online\":true" });
    body.extend_from_slice(b",\"connections\":");
    json::number(&mut body, channels.values().sum::<usize>());
    body.extend_from_slice(b",\"channels\":");
    json::list(&mut body, channels.keys(), |out, name| json::string(out, name));
    body.extend_from_slice(b",\"last_seen\":");
    json::optional_string(&mut body, elsewhere.last_seen.and_then(json::rfc3339).as_deref());
    if explain {
        body.extend_from_slice(b",\"explain\":");
        super::explain::write(&mut body, &state, &user).await;
    }
    body.push(b'}');
    Ok(answer::json(StatusCode::OK, body))
}
