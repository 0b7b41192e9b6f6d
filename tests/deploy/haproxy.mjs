// A real HAProxy with the configuration of deploy/, on free ports.

import { fileURLToPath } from "node:url"
import { freePort, launch, request, until } from "../phoenix/server.mjs"

const CONFIG = fileURLToPath(new URL("../../deploy/haproxy/haproxy.cfg", import.meta.url))
const NOBODY = "127.0.0.1:1"

/** HAProxy in front of these `nodes`, these `redis` servers with a password, and a PostgreSQL at `postgres`. */
export async function startHaproxy({ nodes = [], redis = [], password = "none", postgres = NOBODY, user = "postgres" }) {
  const [clients, redisPort, postgresPort, numbers] = [await freePort(), await freePort(), await freePort(), await freePort()]
  const at = (all, i) => (all[i] ? `127.0.0.1:${all[i].port}` : NOBODY)
  const { child, exited, stop, log } = launch("haproxy", ["-db", "-f", CONFIG], {
    PATH: process.env.PATH,
    CLIENTS_BIND: `127.0.0.1:${clients}`, NODE1: at(nodes, 0), NODE2: at(nodes, 1),
    REDIS_BIND: `127.0.0.1:${redisPort}`, REDIS1: at(redis, 0), REDIS2: at(redis, 1), REDIS_PASSWORD: password,
    POSTGRES_BIND: `127.0.0.1:${postgresPort}`, POSTGRES1: postgres, POSTGRES_CHECK_USER: user,
    NUMBERS_BIND: `127.0.0.1:${numbers}`,
  })
  let ended = false
  exited.then(() => (ended = true))
  const haproxy = {
    pid: child.pid, log, stop,
    /** What clients connect to: as a node of the tests is. */
    port: clients,
    url: `http://127.0.0.1:${clients}`,
    socketUrl: `ws://127.0.0.1:${clients}/socket`,
    redisPort, postgresPort,
    request: (method, target, options) => request(clients, method, target, options),
    get: (target, headers) => request(clients, "GET", target, { headers }),
    post: (target, body, headers) => request(clients, "POST", target, { body, headers }),
    numbers: async () => (await request(numbers, "GET", "/metrics")).text,
    /** The servers of `backend` that are up, by name. */
    async up(backend) {
      const lines = (await haproxy.numbers()).split("\n")
      const found = lines.map((line) => /^haproxy_server_status\{proxy="([^"]*)",server="([^"]*)",state="UP"\} 1/.exec(line))
      return found.filter((match) => match?.[1] === backend).map((match) => match[2]).sort()
    },
    ups: (backend, servers, ms = 10_000) =>
      until(async () => (await haproxy.up(backend)).join() === servers.join(), `${backend}: ${servers} are up`, ms, () => haproxy.up(backend)),
  }
  await until(
    async () => {
      if (ended) throw new Error(log())
      return (await haproxy.numbers()).includes("haproxy_process_uptime")
    },
    "haproxy answers",
    10_000,
    log,
  )
  return haproxy
}
