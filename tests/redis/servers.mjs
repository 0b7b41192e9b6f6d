// Real Redis servers of all kinds, on loopback: one with TLS, a primary with replica and sentinels, a
// cluster. Each has a folder of its own under the system's temporary one, gone when the tests end.

import { execFile } from "node:child_process"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import os from "node:os"
import path from "node:path"
import tls from "node:tls"
import { promisify } from "node:util"
import { connect } from "../phoenix/redis.mjs"
import { freePort, launch, until } from "../phoenix/server.mjs"

const run = promisify(execFile)
const root = mkdtempSync(path.join(os.tmpdir(), "rollcall-redis-"))
process.on("exit", () => rmSync(root, { recursive: true, force: true }))
let folders = 0

/** Runs a program to its end, a minute at most; gives what it printed. */
export const program = async (name, ...args) => (await run(name, args, { timeout: 60_000 })).stdout

/** A folder of its own. */
export const folder = () => mkdtempSync(path.join(root, `${++folders}-`))

/**
 * A redis-server with these arguments, which can be killed and started again with what it has on disk.
 * `login` is sent first on each connection of the tests.
 */
export async function server(args, { port, login = [], open, ca } = {}) {
  port ??= await freePort()
  open ??= ca && (() => tls.connect({ port, host: "127.0.0.1", ca }))
  let process_ = null
  let connection = null
  const redis = {
    port,
    pid: () => process_?.child.pid,
    log: () => process_?.log(),
    async call(...words) {
      if (!connection || connection.closed) {
        connection = await connect(port, open)
        if (login.length > 0) await connection.call(["AUTH", ...login])
      }
      return connection.call(words)
    },
    /** The lines `name:value` of INFO or CLUSTER INFO. */
    async info(...words) {
      const text = await redis.call(...words)
      return Object.fromEntries(text.split("\r\n").filter((line) => line.includes(":")).map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1)]))
    },
    async start() {
      process_ = launch("redis-server", args(port), process.env)
      let ended = false
      process_.exited.then(() => (ended = true))
      await until(
        async () => {
          if (ended) throw new Error(process_.log())
          return (await redis.call("PING")) === "PONG"
        },
        "redis-server answers",
        10_000,
      )
    },
    async stop(signal = "SIGTERM") {
      connection?.close()
      connection = null
      if (!process_) return
      process_.child.kill("SIGCONT")
      await process_.stop(signal)
      process_ = null
    },
    kill: () => redis.stop("SIGKILL"),
    freeze: () => process_.child.kill("SIGSTOP"),
    thaw: () => process_.child.kill("SIGCONT"),
  }
  await redis.start()
  return redis
}

const plain = (dir) => ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir]

/** An authority and a certificate that it gave to 127.0.0.1, as PEM files. */
export async function certificates() {
  const dir = folder()
  const file = (name) => path.join(dir, name)
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
  await program("openssl", "req", "-x509", ...key, "-subj", "/CN=Test authority", "-keyout", file("ca.key"), "-out", file("ca.pem"))
  await program("openssl", "req", ...key.slice(0, -2), "-subj", "/CN=Redis", "-keyout", file("redis.key"), "-out", file("redis.csr"))
  writeFileSync(file("san"), "subjectAltName=IP:127.0.0.1\n")
  await program("openssl", "x509", "-req", "-in", file("redis.csr"), "-CA", file("ca.pem"), "-CAkey", file("ca.key"), "-CAcreateserial", "-days", "2", "-extfile", file("san"), "-out", file("redis.pem"))
  return { ca: file("ca.pem"), cert: file("redis.pem"), key: file("redis.key") }
}

/** A server that speaks TLS alone. */
export async function tlsServer({ ca, cert, key }, caText) {
  const dir = folder()
  const args = (port) => [
    ...plain(dir), "--port", "0", "--tls-port", String(port), "--tls-cert-file", cert, "--tls-key-file", key,
    "--tls-ca-cert-file", ca, "--tls-auth-clients", "no",
  ]
  return server(args, { ca: caText })
}

/** Passwords with every character that means something in an address. */
export const PASSWORD = "p@ss/w:rd?,1"
export const SENTINEL_PASSWORD = "s%nt=nel&2"

/** A primary with one replica, and three sentinels that watch over them. */
export async function sentinelGroup({ down = 3 } = {}) {
  const name = "mymaster"
  const args = (more) => {
    const dir = folder()
    return (port) => [
      ...plain(dir), "--port", String(port), "--requirepass", PASSWORD, "--masterauth", PASSWORD,
      "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", ...more,
    ]
  }
  const login = [PASSWORD]
  const first = await server(args([]), { login })
  const second = await server(args(["--replicaof", "127.0.0.1", String(first.port)]), { login })
  await until(async () => (await second.info("INFO", "replication")).master_link_status === "up", "the replica follows", 20_000)
  const sentinels = await Promise.all(
    Array.from({ length: 3 }, async () => {
      const conf = path.join(folder(), "sentinel.conf")
      const write = (port) => {
        writeFileSync(conf, `port ${port}
bind 127.0.0.1
dir ${path.dirname(conf)}
requirepass "${SENTINEL_PASSWORD}"
sentinel sentinel-pass ${SENTINEL_PASSWORD}
sentinel monitor ${name} 127.0.0.1 ${first.port} 2
sentinel auth-pass ${name} ${PASSWORD}
sentinel down-after-milliseconds ${name} 1000
sentinel failover-timeout ${name} 6000
sentinel parallel-syncs ${name} 1
`)
        return [conf, "--sentinel"]
      }
      let args = null
      return server((port) => (args ??= write(port)), { login: [SENTINEL_PASSWORD] })
    }),
  )
  const master = async (sentinel) => Number((await sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name))[1])
  const fields = async (sentinel) => {
    const flat = await sentinel.call("SENTINEL", "MASTER", name)
    return Object.fromEntries(flat.flatMap((word, at) => (at % 2 ? [] : [[word, flat[at + 1]]])))
  }
  for (const sentinel of sentinels) {
    await until(
      async () => {
        const { "num-other-sentinels": others, "num-slaves": replicas } = await fields(sentinel)
        return others === "2" && replicas === "1"
      },
      "the sentinels know each other and the replica",
      20_000,
    )
  }
  const hosts = sentinels.map(({ port }) => `127.0.0.1:${port}`).join(",")
  return {
    first, second, sentinels, name,
    url: `redis+sentinel://:${encodeURIComponent(PASSWORD)}@${hosts}/${name}?sentinel_password=${encodeURIComponent(SENTINEL_PASSWORD)}`,
    /** Waits until most sentinels name the server `to`. */
    named: (to, ms = 20_000) =>
      until(
        async () => {
          const said = await Promise.all(sentinels.map((sentinel) => master(sentinel).catch(() => 0)))
          return said.filter((port) => port === to.port).length >= 2
        },
        `the sentinels name ${to.port}`,
        ms,
      ),
    /** Waits until `replica` follows `primary`. */
    follows: (replica, primary, ms = 30_000) =>
      until(
        async () => {
          const { role, master_port, master_link_status } = await replica.info("INFO", "replication")
          return role === "slave" && Number(master_port) === primary.port && master_link_status === "up"
        },
        `${replica.port} follows ${primary.port}`,
        ms,
      ),
    stop: () => Promise.all([...sentinels, first, second].map((one) => one.kill())),
  }
}

/** Whether `slot` is in a range such as `0-5460` or `7`. */
const within = (range, slot) => {
  const [from, to = from] = range.split("-").map(Number)
  return from <= slot && slot <= to
}

/** Three primaries with a replica each. */
export async function cluster() {
  const nodes = await Promise.all(
    Array.from({ length: 6 }, async () => {
      const dir = folder()
      const bus = await freePort()
      const args = (port) => [
        ...plain(dir), "--port", String(port), "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
        "--cluster-port", String(bus), "--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0",
      ]
      return server(args)
    }),
  )
  const addresses = nodes.map(({ port }) => `127.0.0.1:${port}`)
  await program("redis-cli", "--cluster", "create", ...addresses, "--cluster-replicas", "1", "--cluster-yes")
  const all = {
    nodes,
    url: `redis+cluster://${addresses.slice(0, 3).join(",")}`,
    at: (port) => nodes.find((node) => node.port === port),
    /** What a living node says of each: id, port, flags, primary, slots. */
    async view(from = nodes.find((node) => node.pid())) {
      const text = await from.call("CLUSTER", "NODES")
      return text.trim().split("\n").map((line) => {
        const [id, address, flags, primary, , , link, ...slots] = line.split(" ")
        return { id, port: Number(/:(\d+)@/.exec(address)[1]), flags: flags.split(","), primary, link, slots }
      })
    },
    async primaries() {
      const view = await all.view()
      return view.filter(({ flags, slots }) => flags.includes("master") && !flags.includes("fail") && slots.length > 0)
    },
    /** The node that owns the slot of `key`. */
    async owner(key) {
      const living = nodes.find((node) => node.pid())
      const slot = await living.call("CLUSTER", "KEYSLOT", key)
      const owns = ({ slots }) => slots.some((range) => within(range, slot))
      const { id, port } = (await all.primaries()).find(owns)
      return { id, slot, node: all.at(port) }
    },
    /** One command about `key`, sent to its owner. */
    ask: async (command, key, ...rest) => (await all.owner(key)).node.call(command, key, ...rest),
    /** Waits until every living node sees the cluster whole, with all primaries alive. */
    whole: (ms = 30_000) =>
      until(
        async () => {
          const living = nodes.filter((node) => node.pid())
          const infos = await Promise.all(living.map((node) => node.info("CLUSTER", "INFO")))
          return infos.every((info) => info.cluster_state === "ok" && info.cluster_slots_ok === "16384")
        },
        "the cluster is whole",
        ms,
      ),
    /** Waits until every primary has a replica that is in step. */
    covered: (ms = 30_000) =>
      until(
        async () => {
          const replicas = (await all.view()).filter(({ flags }) => flags.includes("slave"))
          if (replicas.length < 3) return false
          const infos = await Promise.all(replicas.map(({ port }) => all.at(port).info("INFO", "replication")))
          return infos.every((info) => info.master_link_status === "up")
        },
        "every replica is in step",
        ms,
      ),
    /** Moves a slot with all that is in it to another primary, key by key. */
    async move(key) {
      const { id, slot, node: from } = await all.owner(key)
      const to = (await all.primaries()).find((other) => other.id !== id)
      await all.at(to.port).call("CLUSTER", "SETSLOT", slot, "IMPORTING", id)
      await from.call("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
      let moved = 0
      for (;;) {
        const keys = await from.call("CLUSTER", "GETKEYSINSLOT", slot, 1)
        if (keys.length === 0) break
        await from.call("MIGRATE", "127.0.0.1", to.port, keys[0], 0, 5000)
        moved++
        // As slow as it is with many keys over a network, so that clients come in between.
        await new Promise((resolve) => setTimeout(resolve, 30))
      }
      // The new owner first, so that nobody is sent to one who does not know yet; then every primary is told.
      await all.at(to.port).call("CLUSTER", "SETSLOT", slot, "NODE", to.id)
      for (const { port } of await all.primaries()) await all.at(port).call("CLUSTER", "SETSLOT", slot, "NODE", to.id)
      const agreed = async () => {
        for (const node of nodes) {
          const view = await all.view(node)
          if (!view.find(({ id }) => id === to.id).slots.some((range) => within(range, slot))) return false
        }
        return true
      }
      await until(agreed, "all nodes know where the slot is", 10_000)
      return { slot, moved, to: to.port }
    },
    stop: () => Promise.all(nodes.map((node) => node.kill())),
  }
  await all.whole()
  await all.covered()
  return all
}
