//! The status of users: online, idle or offline, and when they were seen first and last.

use std::collections::{HashMap, HashSet};

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use super::input::{self, Body};
use super::{AppState, Caller, Problem, answer};
use crate::cluster::UserStatus;
use crate::dialects::check_user;
use crate::json;

/// Users in one call.
const MAX_USERS: usize = 1_000;

/// What is said of a user.
#[derive(serde::Serialize)]
struct Status<'a> {
    user: &'a str,
    /// `online`, `idle` (online, and none of the connections is active) or `offline`.
    status: &'static str,
    last_seen: Option<String>,
    first_seen: Option<String>,
}

/// Which users are asked for.
#[derive(serde::Deserialize)]
pub struct Bulk {
    users: Vec<String>,
}

/// `GET /v1/users/{user}/status`
pub async fn of_one(
    _: Caller,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let user = input::user(&request, &state.config.limits)?;
    let found = statuses(&state, &[&user]).await?;
    let status = found.first().copied().unwrap_or_default();
    Ok(answer::value(StatusCode::OK, &written(&state, &user, status)))
}

/// `POST /v1/users/status`
pub async fn of_many(_: Caller, body: Body, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    let Bulk { users } = body.json()?;
    if users.len() > MAX_USERS {
        return Err(Problem::bad_request(format!("at most {MAX_USERS} users in one call")));
    }
    for user in &users {
        check_user(user, &state.config.limits).map_err(|reject| Problem::bad_request(reject.to_string()))?;
    }
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    let found = statuses(&state, &names).await?;
    let statuses: Vec<Status<'_>> =
        names.iter().zip(found).map(|(user, status)| written(&state, user, status)).collect();
    Ok(answer::value(StatusCode::OK, &serde_json::json!({ "statuses": statuses })))
}

/// What is known of `users`, in their order: of all nodes from Redis, and of the channels that live here from L1.
async fn statuses(state: &AppState, users: &[&str]) -> Result<Vec<UserStatus>, Problem> {
    let mut found = state.cluster.statuses(users).await?;
    let mut missing: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, _) in found.iter().enumerate().filter(|(_, status)| !status.online) {
        missing.entry(users[index]).or_default().push(index);
    }
    let mut online: HashSet<&str> = HashSet::new();
    for (_, roster) in state.rosters.all() {
        // Whichever is shorter: the members, or the questions.
        if roster.snapshot.members.len() <= missing.len() {
            let members = roster.snapshot.members.iter();
            online.extend(
                members.filter_map(|member| missing.get_key_value(&*member.user).map(|(user, _)| *user)),
            );
        } else {
            online.extend(missing.keys().filter(|user| roster.snapshot.member(user).is_some()));
        }
    }
    for index in online.into_iter().filter_map(|user| missing.get(user)).flatten() {
        found[*index].online = true;
    }
    Ok(found)
}

fn written<'a>(state: &AppState, user: &'a str, known: UserStatus) -> Status<'a> {
    let judged = !state.config.idle_after.is_zero();
    let status = match known.online {
        false => "offline",
        true if judged && !known.active => "idle",
        true => "online",
    };
    let time = |time: Option<u64>| time.and_then(json::rfc3339);
    Status { user, status, last_seen: time(known.last_seen), first_seen: time(known.first_seen) }
}
