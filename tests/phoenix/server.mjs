// Starts the real server for the tests and takes it down again.
//
// A node gets a free port, a clean environment (nothing of the caller's REDIS_URL and the like) and
// no rate limits, because every test comes from one address. Whatever a test forgets to stop is
// killed, by its own process id, when the test process ends.

import { spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync, readFileSync } from "node:fs"
import http from "node:http"
import net from "node:net"
import path from "node:path"
import { fileURLToPath } from "node:url"

const here = path.dirname(fileURLToPath(import.meta.url))
const target = process.env.CARGO_TARGET_DIR ?? path.join(here, "../../target")
export const BIN = path.resolve(process.env.ROLLCALL_BIN ?? path.join(target, "release/rollcall"))

const children = new Set()
process.on("exit", () => children.forEach((child) => child.kill("SIGKILL")))

/** Starts `command` and keeps what it prints. The child dies with the test process at the latest. */
export function launch(command, args, env) {
  const child = spawn(command, args, { env, stdio: ["ignore", "pipe", "pipe"] })
  const printed = []
  const keep = (chunk) => {
    printed.push(chunk.toString())
    if (process.env.ROLLCALL_TEST_LOG) process.stderr.write(chunk)
  }
  child.stdout.on("data", keep)
  child.stderr.on("data", keep)
  // A test file whose set-up failed half-way must still be able to end.
  for (const handle of [child, child.stdout, child.stderr]) handle.unref()
  children.add(child)
  const exited = new Promise((resolve) => {
    child.once("error", (error) => {
      children.delete(child)
      printed.push(String(error))
      resolve({ code: null, signal: null, error })
    })
    child.once("exit", (code, signal) => {
      children.delete(child)
      resolve({ code, signal })
    })
  })
  /** Sends `signal`, waits for the end and does not wait for ever. */
  const stop = async (signal) => {
    if (children.has(child)) child.kill(signal)
    const late = setTimeout(() => child.kill("SIGKILL"), 20_000)
    const how = await exited
    clearTimeout(late)
    return how
  }
  return { child, exited, stop, log: () => printed.join("") }
}

// Below the ports that systems give to outgoing connections (32768 and up on Linux), one of which could else
// take the port before the server does that it is meant for.
let lastPort = 10_000 + Math.floor(Math.random() * 20_000)

/** A port that nobody listens on at this moment, and that was not given out before. */
export async function freePort() {
  for (;;) {
    lastPort = lastPort < 30_000 ? lastPort + 1 : 10_000
    const port = lastPort
    const server = net.createServer()
    const isFree = await new Promise((resolve) => {
      server.once("error", () => resolve(false))
      server.listen(port, "127.0.0.1", () => resolve(true))
    })
    if (!isFree) continue
    server.close()
    await once(server, "close")
    return port
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

/**
 * Asks `condition` again and again until it gives something true, and gives that back. A condition
 * that throws is false for now. `show` says in the error what was there instead.
 */
export async function until(condition, what, ms = 5000, show = undefined) {
  const end = Date.now() + ms
  let last
  for (;;) {
    try {
      const value = await condition()
      if (value) return value
      last = undefined
    } catch (error) {
      last = error
    }
    if (Date.now() > end) break
    await pause(10)
  }
  const seen = show ? `; there was ${JSON.stringify(await show())}` : ""
  throw new Error(`not within ${ms} ms: ${what}${seen}${last ? ` (${last.message})` : ""}`)
}

/** Watches for `ms` that `condition` holds all the time: for what must not happen. */
export async function holds(condition, what, ms, show = undefined) {
  const end = Date.now() + ms
  while (Date.now() < end) {
    if (!(await condition())) {
      throw new Error(`did not hold: ${what}${show ? `; there was ${JSON.stringify(await show())}` : ""}`)
    }
    await pause(10)
  }
}

/**
 * Starts one node and waits until it answers.
 * `env` overrides the settings; `undefined` as a value takes a default of ours away. `port` is for
 * tests that start a node again where one was.
 */
export async function startNode(env = {}, port = undefined) {
  if (!existsSync(BIN)) throw new Error(`no server at ${BIN}: build it, or name it in ROLLCALL_BIN`)
  port ??= await freePort()
  const settings = {
    PATH: process.env.PATH,
    HOME: process.env.HOME,
    ROLLCALL_LISTEN: `127.0.0.1:${port}`,
    ROLLCALL_RATE_IP: "0",
    ROLLCALL_RATE_USER: "0",
    ROLLCALL_GRACE_SECONDS: "1",
    ...env,
  }
  for (const name of Object.keys(settings)) if (settings[name] === undefined) delete settings[name]
  const { child, exited, stop, log } = launch(BIN, [], settings)
  let ended = null
  exited.then((how) => (ended = how))

  const node = {
    port,
    pid: child.pid,
    url: `http://127.0.0.1:${port}`,
    socketUrl: `ws://127.0.0.1:${port}/socket`,
    log,
    exited,
    running: () => ended === null,
    /** Sends `signal` and waits for the end; gives exit code, signal and how long it took. */
    async stop(signal = "SIGTERM") {
      const begin = Date.now()
      const how = await stop(signal)
      return { ...how, ms: Date.now() - begin }
    },
    /** Memory in use, in bytes, as the kernel counts it. */
    rss: () => Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${child.pid}/status`, "utf8"))[1]) * 1024,
    request: (method, target, options) => request(port, method, target, options),
    get: (target, headers) => request(port, "GET", target, { headers }),
    post: (target, body, headers) => request(port, "POST", target, { body, headers }),
  }

  try {
    await until(
      async () => {
        if (ended) return true
        return (await node.get("/healthz")).status === 200
      },
      "the server answers /healthz",
      15_000,
    )
    if (ended) throw new Error(`the server ended at once: ${JSON.stringify(ended)}`)
  } catch (error) {
    child.kill("SIGKILL")
    throw new Error(`${error.message}\n--- its output ---\n${log()}`)
  }
  return node
}

/**
 * One HTTP request on a connection of its own, its target sent byte for byte as given.
 * `json` is the parsed body where it is JSON, of whatever kind.
 */
export function request(port, method, target, { headers = {}, body, timeout = 10_000 } = {}) {
  const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body)
  const sent = { ...headers }
  const named = Object.keys(sent).map((name) => name.toLowerCase())
  if (text !== undefined && !named.includes("content-type")) sent["Content-Type"] = "application/json"
  if (text !== undefined) sent["Content-Length"] = Buffer.byteLength(text)
  return new Promise((resolve, reject) => {
    const call = http.request(
      { host: "127.0.0.1", port, method, path: target, headers: sent, agent: false, timeout },
      (response) => {
        const parts = []
        response.on("data", (part) => parts.push(part))
        response.on("error", reject)
        response.on("end", () => {
          const answer = Buffer.concat(parts).toString()
          const type = response.headers["content-type"] ?? ""
          let json
          if (/[/+]json/.test(type)) json = answer === "" ? undefined : JSON.parse(answer)
          resolve({ status: response.statusCode, headers: response.headers, type, text: answer, json })
        })
      },
    )
    call.on("timeout", () => call.destroy(new Error(`${method} ${target}: no answer in ${timeout} ms`)))
    call.on("error", reject)
    call.end(text)
  })
}
