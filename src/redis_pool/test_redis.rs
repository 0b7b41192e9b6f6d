//! A real Redis for tests, alone on a free port and gone with the value.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::RedisPool;

pub(crate) struct TestRedis {
    port: u16,
    server: Child,
}

impl TestRedis {
    /// Starts a server and returns once it answers.
    pub(crate) fn start() -> Self {
        // Another process may take the port between its choice and its use: then choose again.
        for _ in 0..5 {
            let port = free_port();
            if let Some(server) = launch(port) {
                return Self { port, server };
            }
        }
        panic!("no redis-server could be started");
    }

    /// Ends the server at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    /// Starts the server again, empty, on the same port.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.server = launch(self.port).expect("redis-server did not come back");
    }

    /// Stops the server without closing anything: connections stay, answers do not come.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets a frozen server go on.
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn pool(&self) -> RedisPool {
        RedisPool::new(&self.url().parse().unwrap()).unwrap()
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.server.id().to_string()]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// An address at which nothing listens.
pub(crate) fn nowhere() -> RedisPool {
    RedisPool::new(&format!("redis://127.0.0.1:{}", free_port()).parse().unwrap()).unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn launch(port: u16) -> Option<Child> {
    let mut server = Command::new("redis-server")
        .args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is needed for these tests");
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline && server.try_wait().unwrap().is_none() {
        if answers(port) {
            return Some(server);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = server.kill();
    let _ = server.wait();
    None
}

fn answers(port: u16) -> bool {
    let ping = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(&answer == b"+PONG")
    };
    ping().unwrap_or(false)
}
