//! The distributed lock between real processes: many fight for it, and one is killed while it holds it.
//!
//! The contenders are this very program, started again with `ROLLCALL_LOCK_REDIS` set.

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rollcall::lock::DistributedLock;
use rollcall::redis_pool::RedisPool;

const CONTENDERS: u64 = 8;
const ROUNDS: u64 = 25;
const TTL_SECONDS: u64 = 2;

struct Server(Child, u16);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn redis_server() -> Server {
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Command::new("redis-server")
            .args(["--save", "", "--bind", "127.0.0.1", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is needed for this test");
        let mut server = Server(server, port);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && server.0.try_wait().unwrap().is_none() {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    panic!("no redis-server could be started");
}

fn pool(url: &str) -> RedisPool {
    RedisPool::new(&url.parse().unwrap()).unwrap()
}

fn contender(url: &str, part: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_contender", "--nocapture"])
        .env("ROLLCALL_LOCK_REDIS", url)
        .env("ROLLCALL_LOCK_PART", part)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// One line that a contender says.
fn line(child: &mut Child, begins: &str) -> String {
    let out = BufReader::new(child.stdout.as_mut().unwrap());
    out.lines().map_while(Result::ok).find(|line| line.starts_with(begins)).expect("it said nothing")
}

/// Does its part where it is started as a contender; as a test of its own it does nothing.
#[tokio::test]
async fn a_contender() {
    let (Ok(url), Ok(part)) = (std::env::var("ROLLCALL_LOCK_REDIS"), std::env::var("ROLLCALL_LOCK_PART"))
    else {
        return;
    };
    let redis = pool(&url);
    let mut lock = DistributedLock::new(redis.clone(), "counter", TTL_SECONDS);
    if part == "hang" {
        assert_eq!(lock.acquire().await, Ok(true));
        println!("\nheld {}", lock.fence().unwrap());
        tokio::time::sleep(Duration::from_secs(60)).await;
        return;
    }
    for _ in 0..ROUNDS {
        assert_eq!(lock.acquire_timeout(Duration::from_secs(60)).await, Ok(true));
        let fence = lock.fence().unwrap();
        // What the lock guards: a counter that is read and written in two steps, and who wrote it last.
        let (count, last): (Option<u64>, Option<u64>) =
            redis.pipeline(redis::pipe().get("count").get("fence")).await.unwrap();
        assert!(last.unwrap_or(0) < fence, "a later holder has been here");
        tokio::time::sleep(Duration::from_micros(500)).await;
        let next = count.unwrap_or(0) + 1;
        redis
            .pipeline::<()>(redis::pipe().set("count", next).ignore().set("fence", fence).ignore())
            .await
            .unwrap();
        assert_eq!(lock.release().await, Ok(true));
    }
}

#[tokio::test]
async fn many_processes_share_a_lock_and_outlive_one_that_was_killed() {
    let server = redis_server();
    let url = format!("redis://127.0.0.1:{}", server.1);
    let mut hanging = contender(&url, "hang");
    let held: u64 = line(&mut hanging, "held ")["held ".len()..].parse().unwrap();
    let mut contenders: Vec<Child> = (0..CONTENDERS).map(|_| contender(&url, "count")).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let counted = redis::Cmd::get("count");
    assert_eq!(pool(&url).query::<Option<u64>>(&counted).await, Ok(None), "it is held");
    // SIGKILL: nothing is freed but by time.
    hanging.kill().unwrap();
    hanging.wait().unwrap();
    let killed = Instant::now();
    while pool(&url).query::<Option<u64>>(&counted).await.unwrap().is_none() {
        assert!(killed.elapsed() < Duration::from_secs(TTL_SECONDS + 2), "the dead holder was not outlived");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for contender in &mut contenders {
        assert!(contender.wait().unwrap().success());
    }
    // Nothing was lost: nobody read between another's reading and writing.
    assert_eq!(pool(&url).query::<u64>(&counted).await, Ok(CONTENDERS * ROUNDS));
    let last: u64 = pool(&url).query(&redis::Cmd::get("fence")).await.unwrap();
    assert!(last > held);
}
