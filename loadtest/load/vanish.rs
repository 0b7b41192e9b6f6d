//! `vanish`: thousands of members are gone at once; how long do those wait who come meanwhile?
//!
//! The members live in a process of their own (`hold`), which is killed: its sockets end all at the same
//! moment, and this process has nothing to do but to look on.

use std::cell::{Cell, RefCell};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::args::Vanish;
use crate::client::Client;
use crate::crowd::Run;
use crate::histogram::Histogram;
use crate::report::Report;

/// Probes before anybody vanishes, to compare.
const CALM: Duration = Duration::from_secs(1);
/// Probes under way: a stall must not pile up more, and the one that waits longest counts.
const AT_ONCE: u32 = 50;

pub async fn run(args: Vanish) -> Result<Report, String> {
    let every = Duration::try_from_secs_f64(args.every / 1_000.0).map_err(|e| format!("--every: {e}"))?;
    let seconds = Duration::try_from_secs_f64(args.seconds).map_err(|e| format!("--seconds: {e}"))?;
    let run = Rc::new(Run::new(&args.common, 1, AT_ONCE as usize).await?);
    let mut members = Members::start(&args, &run)?;
    let calm = probe(&run, every, CALM).await;
    members.kill();
    let storm = probe(&run, every, seconds).await;

    let mut report = Report::new("vanish");
    report.value("members", "members who vanish", "", f64::from(args.members));
    report.value("calm_probes", "connects and joins before", "", calm.count() as f64);
    report.value("calm_max_ms", "longest of them", "ms", calm.max_ms());
    report.value("probes", "connects and joins meanwhile", "", storm.count() as f64);
    report.value("p50_ms", "p50", "ms", storm.quantile_ms(0.5));
    report.value("p99_ms", "p99", "ms", storm.quantile_ms(0.99));
    report.limited("stall_ms", "longest: the stall", "ms", storm.max_ms(), args.max_stall);
    report.value("server_rss_kib", "server memory after", "KiB", run.rss_kib());
    run.verdict(&[], &mut report);
    Ok(report)
}

/// Connects and joins every so often, whether or not the last one is done; how long each took.
async fn probe(run: &Rc<Run>, every: Duration, time: Duration) -> Histogram {
    let took = Rc::new(RefCell::new(Histogram::default()));
    let under_way = Rc::new(Cell::new(0));
    let (start, room) = (Instant::now(), run.numbered_room(1));
    let mut index = 0;
    while start.elapsed() < time || under_way.get() > 0 {
        if start.elapsed() < time && under_way.get() < AT_ONCE {
            let (run, took, under_way) = (Rc::clone(run), Rc::clone(&took), Rc::clone(&under_way));
            let spec = run.spec(index, &room, false);
            index += 1;
            under_way.set(under_way.get() + 1);
            tokio::task::spawn_local(async move {
                let began = Instant::now();
                let probed = async {
                    let client: Rc<Client> = run.connect(spec).await?;
                    client.join(false).await.map(|()| client)
                };
                match probed.await {
                    Ok(client) => {
                        took.borrow_mut().record(began.elapsed());
                        client.reset();
                    }
                    Err(error) => run.world.error(error),
                }
                under_way.set(under_way.get() - 1);
            });
        }
        sleep(every).await;
    }
    took.take()
}

/// The process of those who vanish.
struct Members(Child);

impl Members {
    /// Starts it and waits until all have joined.
    fn start(args: &Vanish, run: &Run) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
        let mut command = Command::new(program);
        command.arg("hold").arg("--members").arg(args.members.to_string());
        // Longer than anything here lasts.
        command.args(["--seconds", "600", "--settle", "60"]);
        for address in &run.servers.addresses {
            command.arg("--url").arg(format!("ws://{address}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut members = Self(command.spawn().map_err(|e| format!("hold: {e}"))?);
        let printed = members.0.stdout.take().ok_or("hold: no output")?;
        let mut line = String::new();
        BufReader::new(printed).read_line(&mut line).map_err(|e| format!("hold: {e}"))?;
        if line.starts_with("ready: ") { Ok(members) } else { Err(format!("hold did not get ready: {line}")) }
    }

    /// Ends it, and all its sockets with it, at once.
    fn kill(&mut self) {
        // It can only fail if there is nothing left to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.kill();
    }
}
