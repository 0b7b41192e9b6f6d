//! What the tiered cache costs, and how often each tier has what is asked: `cargo run --release --example cache`.
//!
//! Starts a redis-server of its own on a free port. L1 is timed without a store behind it; L2 with a process that has
//! nothing in L1, beside a bare `PING` over the same pool; the workload is three nodes that read by a Zipf
//! distribution what a few writes change.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use rollcall::cache::{Caches, Hearing, Lives, TOPIC, TieredCache};
use rollcall::metrics::Metrics;
use rollcall::redis_pool::RedisPool;

/// What is kept: a hundred bytes.
type Row = String;

const LIVES: Lives = Lives {
    l1: Duration::from_secs(60),
    l2: Duration::from_secs(3_600),
    absent: Duration::from_secs(5),
    capacity: 1_000,
};
const L1_CALLS: u32 = 1_000_000;
const L2_CALLS: usize = 20_000;
/// Keys, and the exponent of their popularity: that of web requests (Breslau and others, 1999).
const KEYS: usize = 3_000;
const SKEW: f64 = 1.1;
const READS: usize = 300_000;
/// One write in so many reads.
const WRITES: usize = 1_000;
/// The owner's figures, in percent.
const OWNER: (f64, f64) = (95.0, 80.0);

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn redis_server() -> std::io::Result<(Server, String)> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let args = ["--save", "", "--bind", "127.0.0.1", "--port", &port.to_string()].map(str::to_owned);
    let server = Server(Command::new("redis-server").args(args).stdout(Stdio::null()).spawn()?);
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            return Err(std::io::Error::other("redis-server does not answer"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((server, format!("redis://127.0.0.1:{port}")))
}

fn row(key: usize) -> Row {
    format!("{key:0>100}")
}

/// A node's cache, which hears what others announce.
async fn node(url: &str) -> Result<(TieredCache<Row>, Arc<Metrics>), Box<dyn std::error::Error>> {
    let (hearing, metrics) = (Hearing::default(), Arc::new(Metrics::new()));
    let caches = Caches::new(Some(RedisPool::new(&url.parse()?)?), hearing.clone(), Arc::clone(&metrics));
    let mut messages = redis::Client::open(url)?.get_async_pubsub().await?;
    messages.subscribe(TOPIC).await?;
    let cache = caches.cache("bench", LIVES);
    tokio::spawn(async move {
        let mut messages = messages.into_on_message();
        let mut confirm = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => caches.heard(&message.get_payload::<String>().unwrap_or_default()).await,
                    None => return,
                },
                _ = confirm.tick() => hearing.confirm(Instant::now()),
            }
        }
    });
    Ok((cache, metrics))
}

async fn l1() -> Result<bool, Box<dyn std::error::Error>> {
    let caches = Caches::new(None, Hearing::default(), Arc::new(Metrics::new()));
    let cache: TieredCache<Row> = caches.cache("bench", Lives { capacity: 20_000, ..LIVES });
    let keys: Vec<String> = (0..10_000).map(|key| format!("key {key}")).collect();
    for (key, name) in keys.iter().enumerate() {
        cache.set(name, row(key)).await?;
    }
    let each = |began: Instant| began.elapsed().as_nanos() as f64 / f64::from(L1_CALLS);
    // What is set is made before, so that only the cache is timed.
    let began = Instant::now();
    for call in 0..L1_CALLS as usize {
        std::hint::black_box(cache.get(&keys[call % keys.len()]).await?);
    }
    let get = each(began);
    let mut set = 0.0;
    let mut delete = 0.0;
    let rounds = L1_CALLS as usize / keys.len();
    for _ in 0..rounds {
        let rows: Vec<Row> = (0..keys.len()).map(row).collect();
        let began = Instant::now();
        for (name, row) in keys.iter().zip(rows) {
            cache.set(name, row).await?;
        }
        set += began.elapsed().as_nanos() as f64;
        let began = Instant::now();
        for name in &keys {
            cache.delete(name).await?;
        }
        delete += began.elapsed().as_nanos() as f64;
    }
    let (set, delete) = (set / f64::from(L1_CALLS), delete / f64::from(L1_CALLS));
    println!("L1, nanoseconds a call: get {get:.0}, set {set:.0}, delete {delete:.0} (owner: under 1,000)");
    Ok(get < 1_000.0 && set < 1_000.0 && delete < 1_000.0)
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e6;
    format!("p50 {:.0}, p99 {:.0} µs", at(50), at(99))
}

async fn l2(url: &str) -> Result<(), Box<dyn std::error::Error>> {
    let pool = RedisPool::new(&url.parse()?)?;
    let (writer, _) = node(url).await?;
    let (reader, _) = node(url).await?;
    for key in 0..L2_CALLS {
        writer.set(&format!("l2 {key}"), row(key)).await?;
    }
    let (mut pings, mut gets, mut sets) = (Vec::new(), Vec::new(), Vec::new());
    for key in 0..L2_CALLS {
        let name = format!("l2 {key}");
        let began = Instant::now();
        pool.query::<String>(&redis::cmd("PING")).await?;
        pings.push(began.elapsed());
        // Never asked for before by this node.
        let began = Instant::now();
        let found = reader.get(&name).await?;
        gets.push(began.elapsed());
        assert!(found.is_some(), "{name} is not there");
        let began = Instant::now();
        writer.set(&name, row(key)).await?;
        sets.push(began.elapsed());
    }
    println!("PING: {}", percentiles(pings));
    println!("L2 get: {}", percentiles(gets));
    println!("L2 set, with its announcement: {}", percentiles(sets));
    Ok(())
}

async fn ratios(url: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(node(url).await?);
    }
    // Cumulative popularity of the keys.
    let weights: Vec<f64> = (1..=KEYS).map(|rank| (rank as f64).powf(-SKEW)).collect();
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let until: Vec<f64> = weights
        .iter()
        .map(|weight| {
            sum += weight / total;
            sum
        })
        .collect();
    // A generator of its own, so that every run asks the same (Steele and others, 2014: SplitMix64).
    let mut state = 7_u64;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64
    };
    for call in 0..READS {
        let chance = random();
        let key = until.partition_point(|until| *until < chance).min(KEYS - 1);
        let (cache, _) = &nodes[call % nodes.len()];
        let name = format!("zipf {key}");
        if call % WRITES == 0 {
            cache.delete(&name).await?;
        }
        cache.get_or_load(&name, || async { Ok::<_, std::convert::Infallible>(Some(row(key))) }).await?;
    }
    let (mut hits, mut misses, mut loads) = ([0; 2], [0; 2], 0);
    for (_, metrics) in &nodes {
        let counted = metrics.cache("bench");
        for (at, tier) in [counted.l1, counted.l2].into_iter().enumerate() {
            hits[at] += tier.hits.get();
            misses[at] += tier.misses.get();
        }
        loads += counted.loads.get();
    }
    let ratio = |at: usize| 100.0 * hits[at] as f64 / (hits[at] + misses[at]) as f64;
    println!(
        "{READS} reads of {KEYS} keys by three nodes, Zipf {SKEW}, L1 of {} rows, one deletion in {WRITES} reads:",
        LIVES.capacity
    );
    println!(
        "L1 has {:.1} % (owner: {} %), L2 {:.1} % of the rest (owner: {} %), {loads} loads",
        ratio(0),
        OWNER.0,
        ratio(1),
        OWNER.1
    );
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let run = async {
        let fast = l1().await?;
        let (_server, url) = redis_server()?;
        l2(&url).await?;
        ratios(&url).await?;
        Ok::<_, Box<dyn std::error::Error>>(fast)
    };
    match run.await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cache: {error}");
            ExitCode::from(2)
        }
    }
}
