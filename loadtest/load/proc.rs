//! What processes cost, from /proc: CPU seconds and resident memory.

use std::fs;

/// CPU seconds, user and system, that these processes have taken so far; `None` if one is not there.
pub fn cpu_seconds(pids: &[u32]) -> Option<f64> {
    pids.iter().map(|pid| one_cpu(&pid.to_string())).sum()
}

/// CPU seconds of this process.
pub fn own_cpu_seconds() -> Option<f64> {
    one_cpu("self")
}

fn one_cpu(pid: &str) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(ticks(&stat)? as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The command's name may hold anything, so fields count from its closing parenthesis.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory of all these processes together, in KiB.
pub fn rss_kib(pids: &[u32]) -> Option<f64> {
    pids.iter().map(|pid| vm_rss(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)).sum()
}

fn vm_rss(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Makes room for `sockets` open files in this process and those it starts.
pub fn allow_files(sockets: usize) -> Result<(), String> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let wanted = sockets as u64 + 200;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        let maximum = limit.maximum.unwrap_or_default();
        return Err(format!("{wanted} open files are needed and {maximum} allowed: raise `ulimit -Hn`"));
    }
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).map_err(|e| format!("raising the limit of open files: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_and_status_are_read_whatever_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 100 1000 200";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks(""), None);
        assert_eq!(vm_rss("Name:\tx\nVmRSS:\t   5328 kB\nVmData:\t 1 kB\n"), Some(5328.0));
    }

    #[test]
    fn this_process_has_a_cost() {
        assert!(own_cpu_seconds().is_some());
        assert!(rss_kib(&[std::process::id()]).is_some_and(|kib| kib > 100.0));
        assert_eq!(cpu_seconds(&[u32::MAX]), None);
    }
}
