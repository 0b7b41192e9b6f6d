//! Many clients together: connecting them, waiting until their views are complete, checking the views.

use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::time::sleep;

use crate::args::Common;
use crate::client::{Client, Spec};
use crate::proc;
use crate::protocol::Protocol;
use crate::report::Report;
use crate::room::{Mismatch, Room};
use crate::servers::Servers;
use crate::view::Faults;
use crate::world::World;

/// When no frame came for this long, no more will.
const QUIET: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(5);

/// One run of a subcommand.
pub struct Run {
    pub servers: Servers,
    pub world: Rc<World>,
    name: String,
    settle: Duration,
}

/// What processes had taken when a measurement began.
pub struct Meter {
    servers: Option<f64>,
    own: Option<f64>,
}

impl Run {
    /// `nodes` is how many servers to start when the command line does not say.
    pub async fn new(common: &Common, nodes: usize, clients: usize) -> Result<Self, String> {
        proc::allow_files(clients)?;
        let servers = Servers::of(common, nodes).await?;
        let world = Rc::new(World::new(servers.addresses.len()));
        let name = common.channel.clone().unwrap_or_else(|| format!("load-{}", std::process::id()));
        if !(0.0..=3600.0).contains(&common.settle) {
            return Err("--settle must be from 0 to 3600 seconds".to_owned());
        }
        Ok(Self { servers, world, name, settle: Duration::from_secs_f64(common.settle) })
    }

    /// The channel of this run.
    pub fn room(&self) -> Rc<Room> {
        self.room_of(Protocol::Phoenix)
    }

    /// The same, whose clients speak `protocol`.
    pub fn room_of(&self, protocol: Protocol) -> Rc<Room> {
        Rc::new(Room::new(self.name.clone(), protocol))
    }

    /// One of many channels of this run.
    pub fn numbered_room(&self, number: usize) -> Rc<Room> {
        Rc::new(Room::new(format!("{}:{number}", self.name), Protocol::Phoenix))
    }

    /// The client with this number: nodes take turns.
    pub fn spec(&self, index: usize, room: &Rc<Room>, measures: bool) -> Spec {
        let node = index % self.servers.addresses.len();
        Spec { index, room: room.clone(), node, name: format!("user-{index:05}"), measures }
    }

    pub async fn connect(&self, spec: Spec) -> Result<Rc<Client>, String> {
        let address = self.servers.addresses[spec.node];
        Client::connect(spec, address, self.world.clone()).await
    }

    /// Connects and joins all of `specs`, `in_flight` at a time. They come back in their order.
    pub async fn gather(&self, specs: Vec<Spec>, in_flight: usize) -> Result<Vec<Rc<Client>>, String> {
        let joining = stream::iter(specs.into_iter().enumerate()).map(async |(at, spec)| {
            let client = self.connect(spec).await?;
            client.room().expect(client.user);
            client.join(false).await?;
            Ok::<_, String>((at, client))
        });
        let mut joined: Vec<_> = joining.buffer_unordered(in_flight).try_collect().await.map_err(|e| {
            let first = self.world.errors().first().cloned();
            first.map_or(e.clone(), |first| format!("{e}; first error: {first}"))
        })?;
        joined.sort_by_key(|(at, _)| *at);
        Ok(joined.into_iter().map(|(_, client)| client).collect())
    }

    /// Waits until each view has as many as it should and nothing more comes, or the patience ends.
    pub async fn settle(&self, clients: &[Rc<Client>]) {
        let end = Instant::now() + self.settle;
        while Instant::now() < end {
            let complete = self.world.error_count() > 0
                || clients.iter().all(|c| c.with_view(|view| view.size()) == c.room().expected_size());
            if complete && self.world.quiet_for() > QUIET {
                return;
            }
            sleep(LOOK).await;
        }
    }

    pub fn meter(&self) -> Meter {
        Meter { servers: self.server_cpu(), own: proc::own_cpu_seconds() }
    }

    fn server_cpu(&self) -> Option<f64> {
        if self.servers.pids.is_empty() { None } else { proc::cpu_seconds(&self.servers.pids) }
    }

    pub fn rss_kib(&self) -> Option<f64> {
        if self.servers.pids.is_empty() { None } else { proc::rss_kib(&self.servers.pids) }
    }

    /// Checks every view and reports what is wrong with them, and every error on the way.
    pub fn verdict(&self, clients: &[Rc<Client>], report: &mut Report) {
        let mut wrong = 0;
        let (mut sum, mut faults) = (Mismatch::default(), Faults::default());
        let mut example = None;
        for client in clients {
            let found = client.with_view(|view| (client.room().check(view), view.faults));
            if found == Default::default() {
                continue;
            }
            wrong += 1;
            example.get_or_insert_with(|| format!("{} in {}", client.name(), client.room().topic));
            sum.missing += found.0.missing;
            sum.extra += found.0.extra;
            sum.doubled += found.0.doubled;
            faults.doubled_joins += found.1.doubled_joins;
            faults.unknown_leaves += found.1.unknown_leaves;
        }
        report.value("views", "views checked", "", clients.len() as f64);
        report.value("wrong_views", "views that are wrong", "", f64::from(wrong));
        if wrong > 0 {
            report.fault(format!(
                "{wrong} views: {} missing, {} extra, {} doubled; {} joins came twice, {} leaves came for nobody; for example {}",
                sum.missing, sum.extra, sum.doubled, faults.doubled_joins, faults.unknown_leaves,
                example.unwrap_or_default()
            ));
        }
        let errors = self.world.errors();
        errors.iter().for_each(|error| report.fault(error.clone()));
        let more = self.world.error_count() - errors.len() as u64;
        if more > 0 {
            report.fault(format!("and {more} errors more"));
        }
    }
}

impl Meter {
    /// CPU seconds of the servers since the measurement began.
    pub fn servers(&self, run: &Run) -> Option<f64> {
        Some(run.server_cpu()? - self.servers?)
    }

    /// CPU seconds of this process since then: near the time on the clock, it measured itself.
    pub fn own(&self) -> Option<f64> {
        Some(proc::own_cpu_seconds()? - self.own?)
    }
}

/// Ends all clients with a reset.
pub fn dismiss(clients: Vec<Rc<Client>>) {
    clients.iter().for_each(|client| client.reset());
}
