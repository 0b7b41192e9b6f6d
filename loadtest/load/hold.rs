//! `hold`: members who join and stay, so that another tool can measure a channel that is not empty.

use std::io::Write;
use std::time::Duration;

use tokio::time::sleep;

use crate::args::Hold;
use crate::crowd::{Run, dismiss};
use crate::report::Report;

const IN_FLIGHT: usize = 64;

pub async fn run(args: Hold) -> Result<Report, String> {
    let members = args.members as usize;
    let seconds = Duration::try_from_secs_f64(args.seconds).map_err(|e| format!("--seconds: {e}"))?;
    let run = Run::new(&args.common, 1, members).await?;
    let room = run.room();
    let specs = (0..members).map(|index| run.spec(index, &room, false)).collect();
    let joined = run.gather(specs, IN_FLIGHT).await?;
    run.settle(&joined).await;
    // Whoever started this waits for the line; if nobody reads it, that is no reason to end.
    let _ = writeln!(std::io::stdout(), "ready: {members} members in {}", room.topic);
    sleep(seconds).await;

    let mut report = Report::new("hold");
    report.value("members", "members", "", members as f64);
    report.value("server_rss_kib", "server memory", "KiB", run.rss_kib());
    run.verdict(&joined, &mut report);
    dismiss(joined);
    Ok(report)
}
