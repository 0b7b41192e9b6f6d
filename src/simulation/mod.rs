//! A simulated cluster: the product's own logic, run in virtual time from a seed.
//!
//! Three nodes, a Redis, nine clients. A [`scenario`] of joins, leaves, updates, reloads, crashes,
//! pauses, partitions, outages and losses is made from a seed; [`node`] runs the pure parts of the
//! presence, channel, hub and cluster modules as their shells would; [`store`] stands in for Redis;
//! [`world`] moves time from event to event and checks the guarantees: G2 on every frame that a client
//! is sent, G4 and G5 all the time, G3 and G7 when everything works again.
//!
//! A seed that fails is printed with the shortest scenario that still fails, and runs again with
//!
//! ```sh
//! ROLLCALL_SIM_SEED=7 cargo test --lib simulation -- --nocapture
//! ```
//!
//! `ROLLCALL_SIM_SEEDS` says how many seeds to run (300), `ROLLCALL_SIM_FROM` from which on.

mod client;
mod node;
mod scenario;
mod store;
mod world;

use scenario::Scenario;
use world::{Violation, World, Worst};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn violation(scenario: &Scenario) -> Option<Violation> {
    World::run(scenario, false).err()
}

/// The shortest part of `scenario` in which the same guarantee does not hold.
fn shortest(scenario: &Scenario) -> Option<(Scenario, Violation)> {
    let guarantee =
        |violation: &Violation| violation.split(": ").find(|word| word.starts_with('G')).map(str::to_owned);
    let first = guarantee(&violation(scenario)?);
    let shortest = scenario.shrink(|part| violation(part).is_some_and(|other| guarantee(&other) == first));
    let violation = violation(&shortest)?;
    Some((shortest, violation))
}

#[test]
fn the_guarantees_hold_for_every_seed() {
    if let Some(seed) = setting("ROLLCALL_SIM_SEED") {
        if let Some((shortest, violation)) = shortest(&Scenario::new(seed)) {
            let _ = World::run(&shortest, true);
            panic!("{shortest}{violation}");
        }
        return;
    }
    let (from, seeds) =
        (setting("ROLLCALL_SIM_FROM").unwrap_or(0), setting("ROLLCALL_SIM_SEEDS").unwrap_or(300));
    let (mut steps, mut worst) = (0, Worst::default());
    let began = std::time::Instant::now();
    for seed in from..from + seeds {
        let scenario = Scenario::new(seed);
        match World::run(&scenario, false) {
            Ok(world) => {
                steps += world.steps;
                worst.left = worst.left.max(world.worst.left);
                worst.dropped = worst.dropped.max(world.worst.dropped);
                worst.died = worst.died.max(world.worst.died);
            }
            Err(first) => {
                let shortest = scenario.shrink(|scenario| violation(scenario).is_some());
                let last = violation(&shortest).unwrap_or_default();
                panic!(
                    "{first}\nshrunk: {shortest}{last}\nagain: ROLLCALL_SIM_SEED={seed} cargo test --lib simulation -- --nocapture"
                );
            }
        }
    }
    println!(
        "{seeds} seeds, {steps} steps, {:?}; the longest that who had gone was shown: {worst:?}",
        began.elapsed()
    );
}

#[test]
fn an_undisturbed_hour_finds_nothing_to_repair() {
    let world = World::run(&Scenario::calm_hour(1), false).unwrap_or_else(|violation| panic!("{violation}"));
    for (audit, gaps) in world.audits() {
        assert_eq!((audit, gaps), (crate::channel::sim::Audit::default(), 0));
    }
}
