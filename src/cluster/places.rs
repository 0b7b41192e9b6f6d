//! Where members are who say so in their meta: `"location":{"lat":…,"lon":…}` in degrees. Pure.
//!
//! A location that is none (not two numbers, or beyond the poles) is passed over: it is shown with the meta, and not
//! found. [`Grid`] is the index of a node without Redis; with one, Redis has its own.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

/// The mean radius of the earth in metres, as Redis has it.
const EARTH: f64 = 6_372_797.560_856;
/// Beyond these latitudes Redis' index has no places: those are put on the edge of it.
pub const INDEXED_LATITUDE: f64 = 85.05;

/// A point on the earth, in degrees.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, serde::Serialize)]
pub struct Location {
    pub lat: f64,
    pub lon: f64,
}

impl Location {
    /// The point, if there is one.
    pub fn new(lat: f64, lon: f64) -> Option<Self> {
        let on_earth = (-90.0..=90.0).contains(&lat) && (-180.0..=180.0).contains(&lon);
        on_earth.then_some(Self { lat, lon })
    }

    /// The point that a meta tells.
    pub fn in_meta(meta: &str) -> Option<Self> {
        // Few have one: most metas are not parsed.
        if !meta.contains("\"location\"") {
            return None;
        }
        #[derive(Deserialize)]
        struct Told {
            location: Location,
        }
        let Told { location } = serde_json::from_str(meta).ok()?;
        Self::new(location.lat, location.lon)
    }

    /// Metres to `other`, along the surface.
    pub fn distance(self, other: Self) -> f64 {
        let (lat, other_lat) = (self.lat.to_radians(), other.lat.to_radians());
        let (over, along) = ((other_lat - lat) / 2.0, (other.lon - self.lon).to_radians() / 2.0);
        let half = over.sin().powi(2) + lat.cos() * other_lat.cos() * along.sin().powi(2);
        2.0 * EARTH * half.sqrt().min(1.0).asin()
    }

    /// How many degrees of latitude and of longitude `radius` metres reach at most; none for the second where the
    /// circle touches a pole.
    fn reach(self, radius: f64) -> (f64, Option<f64>) {
        let up = (radius / EARTH).to_degrees();
        if self.lat.abs() + up >= 90.0 {
            return (up, None);
        }
        let wide = (radius / EARTH).sin() / self.lat.to_radians().cos();
        (up, (wide < 1.0 && up < 90.0).then(|| wide.asin().to_degrees()))
    }

    /// Whether a circle of `radius` metres stays clear of the poles and of the line where longitudes begin again,
    /// near which Redis' index does not find everything.
    pub fn is_plain(self, radius: f64) -> bool {
        let (up, wide) = self.reach(radius);
        // A thousandth more: its sphere and ours differ in rounding only.
        let wide = wide.map(|wide| wide * 1.001);
        self.lat.abs() + up * 1.001 < INDEXED_LATITUDE
            && wide.is_some_and(|wide| self.lon.abs() + wide < 180.0)
    }
}

/// The point that a score of Redis' index stands for: latitude and longitude, 26 bits each, interleaved with the
/// longitude first. Off by less than a metre.
pub fn of_score(score: u64) -> Location {
    let every_other =
        |from: u32| (0..26).fold(0_u64, |bits, bit| bits | (score >> (2 * bit + from) & 1) << bit);
    let part = |bits: u64, most: f64| (bits as f64 + 0.5) / f64::from(1 << 26) * 2.0 * most - most;
    // The bounds of its projection (EPSG:900913).
    Location { lat: part(every_other(0), 85.051_128_78), lon: part(every_other(1), 180.0) }
}

/// A square degree, by the latitude and longitude of its lower left corner.
type Cell = (i16, i16);
/// By seat.
type Places = HashMap<u64, (Arc<str>, Location)>;

/// Places by square degrees.
#[derive(Debug, Default)]
pub struct Grid {
    cells: HashMap<Cell, Places>,
    seats: HashMap<u64, Cell>,
}

impl Grid {
    /// Whoever sits on `seat` is at `location`, or nowhere.
    pub fn put(&mut self, seat: u64, user: &Arc<str>, location: Option<Location>) {
        if let Some(cell) = self.seats.remove(&seat)
            && let Some(places) = self.cells.get_mut(&cell)
        {
            places.remove(&seat);
            if places.is_empty() {
                self.cells.remove(&cell);
            }
        }
        if let Some(location) = location {
            let cell = cell_of(location);
            self.seats.insert(seat, cell);
            self.cells.entry(cell).or_default().insert(seat, (Arc::clone(user), location));
        }
    }

    /// Whether nobody is anywhere.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Who is within `radius` metres of `centre`, the nearest first, with the distance.
    pub fn within(&self, centre: Location, radius: f64) -> Vec<(f64, u64, Arc<str>)> {
        let mut found = Vec::new();
        let mut look = |places: &Places| {
            for (seat, (user, location)) in places {
                let distance = centre.distance(*location);
                if distance <= radius {
                    found.push((distance, *seat, Arc::clone(user)));
                }
            }
        };
        let (up, wide) = centre.reach(radius);
        let rows = (centre.lat - up).floor().max(-90.0) as i16..=(centre.lat + up).floor().min(90.0) as i16;
        let columns =
            wide.map(|wide| (centre.lon - wide).floor() as i16..=(centre.lon + wide).floor() as i16);
        match columns {
            Some(columns) if rows.len() * columns.len() < self.cells.len() => {
                for row in rows {
                    for column in columns.clone() {
                        let column = (column + 180).rem_euclid(360) - 180;
                        self.cells.get(&(row, column)).into_iter().for_each(&mut look);
                    }
                }
            }
            _ => self.cells.values().for_each(look),
        }
        found.sort_by(|(a, ..), (b, ..)| a.total_cmp(b));
        found
    }
}

fn cell_of(location: Location) -> Cell {
    // 180 and −180 are one meridian.
    let column = (location.lon.floor() as i16 + 180).rem_euclid(360) - 180;
    (location.lat.floor() as i16, column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(lat: f64, lon: f64) -> Location {
        Location::new(lat, lon).unwrap()
    }

    #[test]
    fn distances_are_those_of_the_earth() {
        for (from, to, metres) in [
            (at(13.361_389, 38.115_556), at(13.361_389, 38.115_556), 0.0),
            // Palermo and Catania, as in the documentation of GEODIST.
            (at(38.115_556, 13.361_389), at(37.502_669, 15.087_269), 166_274.15),
            (at(0.0, 179.9), at(0.0, -179.9), 22_245.0),
            (at(89.9, 0.0), at(89.9, 180.0), 22_245.0),
            (at(0.0, 0.0), at(0.0, 180.0), std::f64::consts::PI * EARTH),
        ] {
            let found = from.distance(to);
            assert!((found - metres).abs() <= metres * 0.001 + 0.01, "{from:?} {to:?}: {found}");
        }
    }

    #[test]
    fn only_a_meta_with_a_point_in_it_has_a_place() {
        let meta = r#"{"name":"a","location":{"lat":52.5,"lon":13.4,"city":"Berlin"}}"#;
        assert_eq!(Location::in_meta(meta), Some(at(52.5, 13.4)));
        for none in [
            "{}",
            r#"{"location":null}"#,
            r#"{"location":"Berlin"}"#,
            r#"{"location":{"lat":91,"lon":0}}"#,
            r#"{"location":{"lat":0,"lon":-180.1}}"#,
            r#"{"location":{"lat":"1","lon":2}}"#,
            r#"{"location":{"lat":1}}"#,
            r#"{"bio":"my \"location\" is secret"}"#,
        ] {
            assert_eq!(Location::in_meta(none), None, "{none}");
        }
    }

    #[test]
    fn scores_of_redis_are_points() {
        // Palermo, as in the documentation of GEOADD.
        let found = of_score(3_479_099_956_230_698);
        assert!(found.distance(at(38.115_556, 13.361_389)) < 1.0, "{found:?}");
        let found = of_score(3_479_447_370_796_909);
        assert!(found.distance(at(37.502_669, 15.087_269)) < 1.0, "{found:?}");
    }

    #[test]
    fn circles_that_redis_cannot_search_are_known() {
        assert!(at(52.5, 13.4).is_plain(50_000.0) && at(0.0, 0.0).is_plain(5_000_000.0));
        for (centre, radius) in
            [(at(85.0, 0.0), 10_000.0), (at(0.0, 179.99), 5_000.0), (at(60.0, -179.0), 60_000.0)]
        {
            assert!(!centre.is_plain(radius), "{centre:?}");
        }
    }

    proptest! {
        /// The index finds what looking at everybody finds, wherever on the earth and however far.
        #[test]
        fn the_grid_finds_what_is_there(
            places in proptest::collection::vec((0_u64..60, -90.0..=90.0_f64, -180.0..=180.0_f64, any::<bool>()), 0..80),
            lat in -90.0..=90.0_f64,
            lon in -180.0..=180.0_f64,
            exponent in 1.0..7.4_f64,
        ) {
            let (mut grid, mut all) = (Grid::default(), HashMap::new());
            let user: Arc<str> = "u".into();
            for (seat, lat, lon, stays) in places {
                let location = stays.then(|| at(lat, lon));
                grid.put(seat, &user, location);
                all.insert(seat, location);
            }
            let (centre, radius) = (at(lat, lon), 10_f64.powf(exponent));
            let mut expected: Vec<(f64, u64)> = all
                .iter()
                .filter_map(|(seat, location)| Some((centre.distance((*location)?), *seat)))
                .filter(|(distance, _)| *distance <= radius)
                .collect();
            expected.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut found: Vec<(f64, u64)> =
                grid.within(centre, radius).into_iter().map(|(distance, seat, _)| (distance, seat)).collect();
            prop_assert!(found.is_sorted_by(|a, b| a.0 <= b.0));
            expected.sort_by_key(|(_, seat)| *seat);
            found.sort_by_key(|(_, seat)| *seat);
            prop_assert_eq!(found, expected);
            prop_assert_eq!(grid.is_empty(), all.values().all(Option::is_none));
        }
    }
}
