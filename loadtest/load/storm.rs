//! `storm`: many clients connect and join one channel at once.

use std::time::Instant;

use crate::args::Storm;
use crate::crowd::{Run, dismiss};
use crate::report::Report;

pub async fn run(args: Storm) -> Result<Report, String> {
    let clients = args.clients as usize;
    let run = Run::new(&args.common, 1, clients).await?;
    let room = run.room_of(args.protocol);
    let specs = (0..clients).map(|index| run.spec(index, &room, false)).collect();

    let rss_before = run.rss_kib();
    let meter = run.meter();
    let start = Instant::now();
    let joined = run.gather(specs, args.in_flight as usize).await?;
    let all_joined = start.elapsed();
    run.settle(&joined).await;
    let (cpu, own) = (meter.servers(&run), meter.own());

    let complete = joined.iter().map(|c| c.last_change()).max().map(|last| last - start);
    let counts: Vec<_> = joined.iter().map(|c| c.counts()).collect();
    let mean = |of: &dyn Fn(usize) -> u64| (0..clients).map(of).sum::<u64>() as f64 / clients as f64;
    let most = |of: &dyn Fn(usize) -> u64| (0..clients).map(of).max().map(|most| most as f64);

    let mut report = Report::new("storm");
    report.value("clients", "clients", "", clients as f64);
    report.value("in_flight", "joins in flight", "", f64::from(args.in_flight));
    report.value("joined_seconds", "until all had joined", "s", all_joined.as_secs_f64());
    let complete = complete.map(|complete| complete.as_secs_f64());
    report.limited("seconds", "until the last view changed", "s", complete, args.max_seconds);
    let (presence, all) = (&|at: usize| counts[at].presence_frames, &|at: usize| counts[at].frames);
    report.limited(
        "presence_frames_mean",
        "presence frames a client, mean",
        "",
        mean(presence),
        args.max_frames,
    );
    report.value("presence_frames_max", "presence frames a client, most", "", most(presence));
    report.value("states_mean", "of them states, mean", "", mean(&|at| counts[at].states));
    report.value("frames_mean", "all frames a client, mean", "", mean(all));
    report.value("frames_max", "all frames a client, most", "", most(all));
    report.value("reads_mean", "reads that found something a client, mean", "", mean(&|at| counts[at].reads));
    report.value("bytes_mean", "bytes a client, mean", "", mean(&|at| counts[at].bytes));
    report.limited("server_cpu_seconds", "server CPU", "s", cpu, args.max_cpu);
    report.value("own_cpu_seconds", "load generator CPU", "s", own);
    report.value("server_rss_before_kib", "server memory before", "KiB", rss_before);
    report.value("server_rss_kib", "server memory after", "KiB", run.rss_kib());
    run.verdict(&joined, &mut report);
    dismiss(joined);
    Ok(report)
}
