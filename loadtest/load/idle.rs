//! `idle`: many members in small channels, and what one of them costs the server in memory.

use std::time::Duration;

use tokio::time::sleep;

use crate::args::Idle;
use crate::crowd::{Run, dismiss};
use crate::report::Report;

const IN_FLIGHT: usize = 64;
/// Lets what joining left behind be freed.
const REST: Duration = Duration::from_secs(2);

pub async fn run(args: Idle) -> Result<Report, String> {
    let members = args.members as usize;
    let run = Run::new(&args.common, 1, members).await?;
    let size = args.channel_size as usize;
    let rooms: Vec<_> = (0..members.div_ceil(size)).map(|number| run.numbered_room(number)).collect();
    let specs = (0..members).map(|index| run.spec(index, &rooms[index / size], false)).collect();

    let before = run.rss_kib();
    let meter = run.meter();
    let joined = run.gather(specs, IN_FLIGHT).await?;
    run.settle(&joined).await;
    let (cpu, own) = (meter.servers(&run), meter.own());
    sleep(REST).await;
    let after = run.rss_kib();
    let each = before.zip(after).map(|(before, after)| (after - before) / members as f64);

    let mut report = Report::new("idle");
    report.value("members", "members", "", members as f64);
    report.value("channels", "channels", "", rooms.len() as f64);
    report.value("server_rss_before_kib", "server memory before", "KiB", before);
    report.value("server_rss_kib", "server memory after", "KiB", after);
    report.limited("kib_per_member", "a member costs", "KiB", each, args.max_kib);
    report.value("server_cpu_seconds", "server CPU for all joins", "s", cpu);
    report.value("own_cpu_seconds", "load generator CPU", "s", own);
    run.verdict(&joined, &mut report);
    dismiss(joined);
    Ok(report)
}
