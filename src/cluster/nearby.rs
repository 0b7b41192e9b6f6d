//! Who is near a point: the index says where to look, and what stands of the members says who is there.
//!
//! With Redis the index is `presence:channel:{c}:places`, kept by the pipeline with everything else; what it names and
//! is not there any more is taken out of it by whoever looks. Redis searches circles; near the poles, and where
//! longitudes begin again, it does not find everything, and all places are looked at instead, page by page.

use std::collections::HashSet;
use std::sync::Arc;

use super::bus::Bus;
use super::places::{self, INDEXED_LATITUDE, Location};
use super::{Away, keys, wire};
use crate::presence::Snapshot;
use crate::redis_pool::RedisError;

/// Connections that are looked at, the nearest of them.
const MAX_PLACES: usize = 10_000;
/// Places in one answer, where all of them are looked at.
const PAGE: usize = 5_000;
/// Metres by which the index may be wrong.
const SLACK: f64 = 1.0;
/// Of them, so many at a time.
const CHUNK: usize = 500;

/// A member who is near.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearby {
    pub user: Arc<str>,
    /// That of the nearest of the user's connections.
    pub location: Location,
    /// Metres.
    pub distance: f64,
}

/// Those of `places`, seats of this node with the nearest first, who are in `roster`.
pub fn of_roster(
    roster: &Snapshot,
    places: &[(u64, Arc<str>)],
    centre: Location,
    radius: f64,
    limit: usize,
) -> Vec<Nearby> {
    let mut found = Found::new(centre, radius, limit);
    for (seat, user) in places {
        let member = roster.member(user);
        let entry = member.and_then(|member| member.seats.iter().find(|(one, _)| one.number == *seat));
        if let Some((_, entry)) = entry {
            found.add(user, Location::in_meta(&entry.meta));
        }
        if found.is_full() {
            break;
        }
    }
    found.sorted()
}

/// Those who stand in Redis.
pub async fn search(
    bus: &Bus,
    channel: &str,
    centre: Location,
    radius: f64,
    limit: usize,
) -> Result<Vec<Nearby>, Away> {
    let key = bus.keys.places(channel);
    let is_plain = centre.is_plain(radius);
    let places = if is_plain {
        let mut search = redis::cmd("GEOSEARCH");
        search.arg(&key).arg("FROMLONLAT").arg(centre.lon).arg(centre.lat);
        // Its places are rounded to less than a metre.
        search.arg("BYRADIUS").arg(radius + SLACK).arg("m").arg("ASC").arg("COUNT").arg(MAX_PLACES);
        bus.pool.query::<Vec<String>>(&search).await?
    } else {
        look_at_all(bus, &key, centre, radius).await?
    };
    let mut found = Found::new(centre, radius, limit);
    for some in places.chunks(CHUNK) {
        let named: Vec<(&String, &str, &str)> = some
            .iter()
            .filter_map(|place| keys::parse_place(place).map(|(field, user)| (place, field, user)))
            .collect();
        if named.is_empty() {
            continue;
        }
        let mut pipeline = redis::pipe();
        for (_, field, user) in &named {
            pipeline.hget(bus.keys.user(channel, user), *field);
        }
        let values: Vec<Option<String>> = bus.pool.pipeline(&pipeline).await?;
        let mut gone = redis::cmd("ZREM");
        gone.arg(&key);
        let mut any_gone = false;
        for ((place, field, user), value) in named.into_iter().zip(values) {
            match value {
                Some(value) => {
                    let user: Arc<str> = user.into();
                    let entry = wire::parse_value(&user, field, &value).ok();
                    found.add(&user, entry.and_then(|(_, _, entry)| Location::in_meta(&entry.meta)));
                }
                None => {
                    gone.arg(place);
                    any_gone = true;
                }
            }
        }
        if any_gone {
            bus.pool.query::<()>(&gone).await?;
        }
        // The nearest come first.
        if found.is_full() {
            break;
        }
    }
    Ok(found.sorted())
}

/// The places within `radius` of `centre`, the nearest first, of all that the index has: by pages, by their own scores.
async fn look_at_all(bus: &Bus, key: &str, centre: Location, radius: f64) -> Result<Vec<String>, RedisError> {
    let mut near: Vec<(f64, String)> = Vec::new();
    let mut cursor = 0_u64;
    loop {
        let mut scan = redis::cmd("ZSCAN");
        scan.arg(key).arg(cursor).arg("COUNT").arg(PAGE);
        let (next, page): (u64, Vec<(String, f64)>) = bus.pool.query(&scan).await?;
        for (place, score) in page {
            let location = places::of_score(score as u64);
            // On the edge of the index stands who is anywhere beyond it: those are always looked at.
            let is_beyond = location.lat.abs() > INDEXED_LATITUDE - 0.01;
            let distance = if is_beyond { 0.0 } else { centre.distance(location) };
            if distance <= radius + SLACK {
                near.push((distance, place));
            }
        }
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    near.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    near.dedup_by(|(_, a), (_, b)| a == b);
    near.truncate(MAX_PLACES);
    Ok(near.into_iter().map(|(_, place)| place).collect())
}

/// A latitude as Redis takes it.
pub fn indexed(location: Location) -> Location {
    Location { lat: location.lat.clamp(-INDEXED_LATITUDE, INDEXED_LATITUDE), ..location }
}

/// Members found so far, the nearest connection of each.
struct Found {
    centre: Location,
    radius: f64,
    limit: usize,
    users: HashSet<Arc<str>>,
    all: Vec<Nearby>,
}

impl Found {
    fn new(centre: Location, radius: f64, limit: usize) -> Self {
        Self { centre, radius, limit, users: HashSet::new(), all: Vec::new() }
    }

    fn add(&mut self, user: &Arc<str>, location: Option<Location>) {
        let Some(location) = location else { return };
        let distance = self.centre.distance(location);
        if distance <= self.radius {
            self.users.insert(Arc::clone(user));
            self.all.push(Nearby { user: Arc::clone(user), location, distance });
        }
    }

    fn is_full(&self) -> bool {
        self.users.len() >= self.limit
    }

    fn sorted(mut self) -> Vec<Nearby> {
        self.all.sort_by(|a, b| a.distance.total_cmp(&b.distance).then_with(|| a.user.cmp(&b.user)));
        self.users.clear();
        self.all.retain(|one| self.users.insert(Arc::clone(&one.user)));
        self.all.truncate(self.limit);
        self.all
    }
}
