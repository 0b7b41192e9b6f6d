//! The servers under load: running ones, or started here on free ports and stopped by their process ids.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::args::Common;

const START: Duration = Duration::from_secs(10);
/// A server may drain for ten seconds.
const STOP: Duration = Duration::from_secs(15);

pub struct Servers {
    pub addresses: Vec<SocketAddr>,
    pub pids: Vec<u32>,
    /// In the order of their start; ended in reverse.
    children: Vec<Started>,
    folder: Option<PathBuf>,
}

/// A process of ours. Whatever happens, it does not outlive us.
struct Started {
    child: Child,
    what: String,
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed())
            && matches!(self.child.try_wait(), Ok(None))
        {
            // It may have ended by itself just now.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let end = Instant::now() + STOP;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                eprintln!("{} (pid {}) did not stop within {STOP:?}: killed", self.what, self.child.id());
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        while self.children.pop().is_some() {}
        if let Some(folder) = &self.folder {
            // Logs that nobody asked for.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

impl Servers {
    /// Those that `common` names, or new ones; `nodes` if it does not say how many.
    pub async fn of(common: &Common, nodes: usize) -> Result<Self, String> {
        let Some(binary) = &common.spawn else {
            if !common.pid.is_empty() && common.pid.len() != common.url.len() {
                return Err("one --pid for each --url".to_owned());
            }
            let (addresses, pids) = (common.url.clone(), common.pid.clone());
            return Ok(Self { addresses, pids, children: Vec::new(), folder: None });
        };
        let nodes = common.nodes.unwrap_or(nodes).max(1);
        if nodes > 1 && !common.redis {
            return Err("nodes know each other through Redis: add --redis".to_owned());
        }
        let folder = std::env::temp_dir().join(format!("rollcall-load-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let (addresses, pids, children) = (Vec::new(), Vec::new(), Vec::new());
        let mut servers = Self { addresses, pids, children, folder: Some(folder.clone()) };
        let redis = if common.redis { Some(servers.start_redis(&folder).await?) } else { None };
        for node in 0..nodes {
            servers.start_node(binary, node, redis, &folder).await?;
        }
        Ok(servers)
    }

    async fn start_redis(&mut self, folder: &Path) -> Result<SocketAddr, String> {
        let address = free_port()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"]);
        command.arg(address.port().to_string()).arg("--dir").arg(folder);
        self.start(command, "redis-server", folder)?;
        self.wait_for(b"PING\r\n", b"+PONG", address, folder).await?;
        Ok(address)
    }

    async fn start_node(
        &mut self,
        binary: &Path,
        node: usize,
        redis: Option<SocketAddr>,
        folder: &Path,
    ) -> Result<(), String> {
        let address = free_port()?;
        let mut command = Command::new(binary);
        command.env_remove("DATABASE_URL").env_remove("REDIS_URL");
        command.env("ROLLCALL_LISTEN", address.to_string()).env("ROLLCALL_LOG", "warn");
        command.env("ROLLCALL_RATE_IP", "0").env("ROLLCALL_RATE_USER", "0");
        if let Some(redis) = redis {
            command.env("REDIS_URL", format!("redis://{redis}"));
        }
        let pid = self.start(command, &format!("node-{node}"), folder)?;
        let request = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
        self.wait_for(request, b"HTTP/1.1 200", address, folder).await?;
        self.addresses.push(address);
        self.pids.push(pid);
        Ok(())
    }

    fn start(&mut self, mut command: Command, what: &str, folder: &Path) -> Result<u32, String> {
        let log = File::create(folder.join(format!("{what}.log"))).map_err(|e| format!("log: {e}"))?;
        let same_log = log.try_clone().map_err(|e| format!("log: {e}"))?;
        command.stdin(Stdio::null()).stdout(log).stderr(same_log);
        let child = command.spawn().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
        let pid = child.id();
        self.children.push(Started { child, what: what.to_owned() });
        Ok(pid)
    }

    /// Waits until the process started last answers.
    async fn wait_for(
        &mut self,
        question: &[u8],
        answer: &[u8],
        address: SocketAddr,
        folder: &Path,
    ) -> Result<(), String> {
        let end = Instant::now() + START;
        while Instant::now() < end {
            if ask(address, question, answer.len()).await.is_some_and(|got| got == answer) {
                return Ok(());
            }
            let last = self.children.last_mut().map(|last| last.child.try_wait());
            if matches!(last, Some(Ok(Some(_)) | Err(_))) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let what = self.children.last().map_or("it", |last| &last.what);
        let log = std::fs::read_to_string(folder.join(format!("{what}.log"))).unwrap_or_default();
        Err(format!("{what} did not start; it said:\n{log}"))
    }
}

/// The first bytes of the answer to `question`.
async fn ask(address: SocketAddr, question: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(question).await.ok()?;
    let mut answer = vec![0; len];
    let reading = stream.read_exact(&mut answer);
    tokio::time::timeout(Duration::from_secs(1), reading).await.ok()?.ok()?;
    Some(answer)
}

/// A port that nobody listens on at this moment.
fn free_port() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    listener.and_then(|free| free.local_addr()).map_err(|e| format!("no free port: {e}"))
}
