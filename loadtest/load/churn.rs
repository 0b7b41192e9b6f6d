//! `churn` and `two-nodes`: members who stay watch others join and leave, evenly paced.
//!
//! Leavers are taken in the order in which they came. Before the measurement begins there are already
//! enough of them that nobody leaves within `--stay` of joining: a visit shorter than the
//! server's window may rightly be told to no one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::args::{Churn, ChurnLimits, Pace, TwoNodes};
use crate::client::Client;
use crate::crowd::{Run, dismiss};
use crate::histogram::Histogram;
use crate::report::Report;
use crate::room::Room;
use crate::view::User;

const IN_FLIGHT: usize = 64;
/// A joiner opens its socket this long before its join is due.
const AHEAD: Duration = Duration::from_millis(500);
/// Between the last join of the steady members and the first measured one.
const REST: Duration = Duration::from_secs(1);

/// What the paced tasks share.
struct Stage {
    run: Run,
    room: Rc<Room>,
    /// Those who may leave, oldest first.
    visitors: RefCell<VecDeque<Rc<Client>>>,
    joined: RefCell<Vec<User>>,
    left: RefCell<Vec<User>>,
    /// Leaves for which nobody was there.
    idle_leaves: Cell<u64>,
    /// How late this process itself wrote a join or a leave, at most.
    latest: Cell<Duration>,
    drop: bool,
}

/// What the run costs and who is still there.
struct Outcome {
    stage: Rc<Stage>,
    steady: Vec<Rc<Client>>,
    cpu: Option<f64>,
    own: Option<f64>,
    seconds: f64,
}

pub async fn run(args: Churn) -> Result<Report, String> {
    let outcome = churn(&args.common, 1, args.members, &args.pace).await?;
    let mut report = Report::new("churn");
    let all = outcome.stage.run.world.latency_of_all();
    latency(&mut report, &ALL, &all, (args.limits.max_p50, args.limits.max_p99));
    if outcome.stage.run.servers.addresses.len() == 2 {
        between_nodes(&outcome, &mut report, (None, None));
    }
    Ok(outcome.finish(report, &args.limits))
}

pub async fn run_two_nodes(args: TwoNodes) -> Result<Report, String> {
    if args.common.spawn.is_none() && args.common.url.len() != 2 {
        return Err("two-nodes needs two --url, or --spawn with --redis".to_owned());
    }
    if args.common.nodes.is_some_and(|nodes| nodes != 2) {
        return Err("two-nodes has two nodes".to_owned());
    }
    let TwoNodes { members, joins, leaves, seconds, stay, drop, .. } = args;
    let pace = Pace { joins, leaves, seconds, stay, drop };
    let outcome = churn(&args.common, 2, members, &pace).await?;
    let mut report = Report::new("two-nodes");
    between_nodes(&outcome, &mut report, (args.limits.max_p50, args.limits.max_p99));
    Ok(outcome.finish(report, &args.limits))
}

async fn churn(
    common: &crate::args::Common,
    nodes: usize,
    members: u32,
    pace: &Pace,
) -> Result<Outcome, String> {
    let (joins, leaves, pool) = numbers(pace)?;
    let steady_count = members as usize;
    let first_joiner = steady_count + pool;
    let run = Run::new(common, nodes, first_joiner + joins).await?;
    let room = run.room();
    let specs = (0..first_joiner).map(|index| run.spec(index, &room, index < steady_count)).collect();
    let mut steady = run.gather(specs, IN_FLIGHT).await?;
    run.settle(&steady).await;
    let visitors = VecDeque::from(steady.split_off(steady_count));
    let stage = Rc::new(Stage {
        run,
        room,
        visitors: RefCell::new(visitors),
        joined: RefCell::default(),
        left: RefCell::default(),
        idle_leaves: Cell::new(0),
        latest: Cell::new(Duration::ZERO),
        drop: pace.drop,
    });

    sleep(REST).await;
    let meter = stage.run.meter();
    let start = Instant::now() + AHEAD;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..joins {
        let due = start + Duration::from_secs_f64(number as f64 / pace.joins);
        tasks.spawn_local(stage.clone().join(first_joiner + number, due));
    }
    for number in 0..leaves {
        let due = start + Duration::from_secs_f64((number as f64 + 0.5) / pace.leaves);
        tasks.spawn_local(stage.clone().leave(due));
    }
    while tasks.join_next().await.is_some() {}
    let everyone: Vec<_> = steady.iter().cloned().chain(stage.visitors.borrow().iter().cloned()).collect();
    stage.run.settle(&everyone).await;
    let (cpu, own) = (meter.servers(&stage.run), meter.own());
    let seconds = start.elapsed().as_secs_f64();
    Ok(Outcome { stage, steady, cpu, own, seconds })
}

/// How many joins, how many leaves, and how many must be there to leave before any joiner does.
fn numbers(pace: &Pace) -> Result<(usize, usize, usize), String> {
    let Pace { joins, leaves, seconds, stay, .. } = *pace;
    for (name, value) in [("--joins", joins), ("--leaves", leaves), ("--seconds", seconds), ("--stay", stay)]
    {
        if !(0.0..=100_000.0).contains(&value) {
            return Err(format!("{name} must be from 0 to 100000"));
        }
    }
    let surplus = (leaves - joins).max(0.0) * seconds;
    let pool = leaves * stay.min(seconds) + surplus;
    Ok(((joins * seconds) as usize, (leaves * seconds) as usize, pool.ceil() as usize))
}

impl Stage {
    async fn join(self: Rc<Self>, index: usize, due: Instant) {
        sleep_until(due - AHEAD).await;
        let spec = self.run.spec(index, &self.room, false);
        let client = match self.run.connect(spec).await {
            Ok(client) => client,
            Err(e) => return self.run.world.error(e),
        };
        sleep_until(due).await;
        self.late(due);
        self.room.expect(client.user);
        self.joined.borrow_mut().push(client.user);
        match client.join(true).await {
            Ok(()) => self.visitors.borrow_mut().push_back(client),
            Err(e) => self.run.world.error(e),
        }
    }

    async fn leave(self: Rc<Self>, due: Instant) {
        sleep_until(due).await;
        self.late(due);
        let Some(client) = self.visitors.borrow_mut().pop_front() else {
            return self.idle_leaves.set(self.idle_leaves.get() + 1);
        };
        self.room.expect_gone(client.user);
        self.left.borrow_mut().push(client.user);
        if self.drop {
            client.close();
        } else if let Err(e) = client.leave().await {
            self.run.world.error(e);
        } else {
            client.reset();
        }
    }

    fn late(&self, due: Instant) {
        self.latest.set(self.latest.get().max(due.elapsed()));
    }
}

impl Outcome {
    /// The rows that every churn has, and the verdict; then everybody goes.
    fn finish(self, mut report: Report, limits: &ChurnLimits) -> Report {
        let stage = &self.stage;
        let (joins, leaves) = (stage.joined.borrow().len(), stage.left.borrow().len());
        let told = ((joins + leaves) * self.steady.len()) as f64;
        let cpu_us = self.cpu.filter(|_| told > 0.0).map(|cpu| cpu * 1e6 / told);
        let frames: u64 = self.steady.iter().map(|c| c.counts().presence_frames).sum();
        report.value("members", "steady members", "", self.steady.len() as f64);
        report.value("joins", "joins", "", joins as f64);
        report.value("leaves", "leaves", "", leaves as f64);
        report.value("idle_leaves", "leaves with nobody there to leave", "", stage.idle_leaves.get() as f64);
        report.value("seconds", "from the first join to quiet", "s", self.seconds);
        report.value(
            "latest_ms",
            "load generator late by at most",
            "ms",
            stage.latest.get().as_secs_f64() * 1e3,
        );
        report.value("server_cpu_seconds", "server CPU", "s", self.cpu);
        let label = "server CPU for a change told to a member";
        report.limited("cpu_us_per_change", label, "µs", cpu_us, limits.max_cpu_us);
        report.value("own_cpu_seconds", "load generator CPU", "s", self.own);
        let mean = frames as f64 / self.steady.len() as f64;
        report.value("presence_frames_mean", "presence frames a member, with the start", "", mean);
        report.value("server_rss_kib", "server memory", "KiB", stage.run.rss_kib());
        self.once_each(&mut report);
        let mut everyone = self.steady;
        everyone.extend(stage.visitors.borrow_mut().drain(..));
        stage.run.verdict(&everyone, &mut report);
        dismiss(everyone);
        report
    }

    /// Each steady member must have seen each join once and each leave once, and no other leave.
    fn once_each(&self, report: &mut Report) {
        let stage = &self.stage;
        let mut users: Vec<User> = self.stage.joined.borrow().clone();
        let left = stage.left.borrow();
        users.extend(left.iter().filter(|user| !users.contains(user)).copied().collect::<Vec<_>>());
        users.extend(self.steady.iter().map(|client| client.user));
        let places = stage.room.places_of(&users);
        let (mut unseen, mut unparted, mut untrue, mut again) = (0_u64, 0_u64, 0_u64, 0_u64);
        for client in &self.steady {
            client.with_view(|view| {
                for (user, places) in &places {
                    let joins = places.iter().filter(|place| view.saw_join(**place)).count();
                    let leaves = places.iter().filter(|place| view.saw_leave(**place)).count();
                    let expected = usize::from(!stage.room.expects(*user));
                    unseen += u64::from(joins == 0);
                    again += joins.saturating_sub(1) as u64;
                    unparted += u64::from(leaves < expected);
                    untrue += leaves.saturating_sub(expected) as u64;
                }
            });
        }
        if unseen + unparted + untrue + again > 0 {
            report.fault(format!(
                "members did not see each change once: {unseen} joins and {unparted} leaves never seen, \
                 {again} joins seen again, {untrue} leaves seen that were none"
            ));
        }
    }
}

/// The keys and labels of one set of quantiles.
struct Names {
    keys: [&'static str; 5],
    labels: [&'static str; 5],
}

macro_rules! names {
    ($key:literal, $label:literal) => {
        Names {
            keys: [
                concat!($key, "_pairs"),
                concat!($key, "_p50_ms"),
                concat!($key, "_p90_ms"),
                concat!($key, "_p99_ms"),
                concat!($key, "_max_ms"),
            ],
            labels: [
                concat!($label, ": pairs"),
                concat!($label, ": p50"),
                concat!($label, ": p90"),
                concat!($label, ": p99"),
                concat!($label, ": max"),
            ],
        }
    };
}

const ALL: Names = names!("visible", "join to visible");
const BETWEEN: [(usize, usize, Names); 4] = [
    (0, 1, names!("a_to_b", "join on A, visible on B")),
    (1, 0, names!("b_to_a", "join on B, visible on A")),
    (0, 0, names!("a_to_a", "join on A, visible on A")),
    (1, 1, names!("b_to_b", "join on B, visible on B")),
];

/// Limits on the median and on one in a hundred.
type Limits = (Option<f64>, Option<f64>);

fn latency(report: &mut Report, names: &Names, of: &Histogram, (p50, p99): Limits) {
    let values = [
        (Some(of.count() as f64), None),
        (of.quantile_ms(0.5), p50),
        (of.quantile_ms(0.9), None),
        (of.quantile_ms(0.99), p99),
        (of.max_ms(), None),
    ];
    for (at, (value, limit)) in values.into_iter().enumerate() {
        let unit = if at == 0 { "" } else { "ms" };
        report.limited(names.keys[at], names.labels[at], unit, value, limit);
    }
}

/// From node to node; only across nodes do the limits hold.
fn between_nodes(outcome: &Outcome, report: &mut Report, limits: Limits) {
    for (from, to, names) in &BETWEEN {
        let of = outcome.stage.run.world.latency(*from, *to);
        latency(report, names, &of, if from == to { (None, None) } else { limits });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(joins: f64, leaves: f64) -> Pace {
        Pace { joins, leaves, seconds: 10.0, stay: 2.0, drop: false }
    }

    #[test]
    fn there_is_always_somebody_to_leave_who_stayed_long_enough() {
        assert_eq!(numbers(&pace(50.0, 50.0)), Ok((500, 500, 100)));
        assert_eq!(numbers(&pace(10.0, 50.0)), Ok((100, 500, 500)));
        assert_eq!(numbers(&pace(50.0, 0.0)), Ok((500, 0, 0)));
        assert!(numbers(&pace(f64::NAN, 1.0)).is_err());
        assert!(numbers(&pace(-1.0, 1.0)).is_err());
    }
}
