// A real redis-server of the test's own, on a free port, that can be stopped, emptied, frozen and
// killed; and a RESP client just big enough to look into it.

import net from "node:net"
import { freePort, launch, until } from "./server.mjs"

/**
 * Starts redis-server with nothing in it and nothing on disk; or, with `started: false`, only picks its port.
 * With a `folder` it keeps there what SAVE writes, and begins with it. `args` and `env` are added to its own.
 */
export async function startRedis({ started = true, folder, args: more = [], env = {} } = {}) {
  const port = await freePort()
  let server = null
  let connection = null

  const redis = {
    port,
    url: `redis://127.0.0.1:${port}`,
    pid: () => server?.child.pid,
    /** One command, its answer as JavaScript values. */
    async call(...words) {
      if (!connection || connection.closed) connection = await connect(port)
      return connection.call(words)
    },
    keys: (pattern) => redis.call("KEYS", pattern),
    /** All fields of a hash as an object. */
    async hash(key) {
      const flat = await redis.call("HGETALL", key)
      const fields = {}
      for (let i = 0; i < flat.length; i += 2) fields[flat[i]] = flat[i + 1]
      return fields
    },
    /** Starts it on the same port as before: empty, or with what was saved. */
    async start() {
      if (server) throw new Error("redis-server is already running")
      const args = ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
      args.push(...(folder ? ["--dir", folder] : []), ...more)
      server = launch("redis-server", args, { ...process.env, ...env })
      let ended = false
      server.exited.then(() => (ended = true))
      await until(
        async () => {
          if (ended) throw new Error(server.log())
          return (await redis.call("PING")) === "PONG"
        },
        "redis-server answers",
        10_000,
      )
    },
    /** Ends it; whatever it held is gone. */
    async stop(signal = "SIGTERM") {
      connection?.close()
      connection = null
      if (!server) return
      server.child.kill("SIGCONT")
      await server.stop(signal)
      server = null
    },
    kill: () => redis.stop("SIGKILL"),
    async restartEmpty() {
      await redis.kill()
      await redis.start()
    },
    /** Redis that is there and answers nothing, as on a stalled machine. */
    freeze: () => server.child.kill("SIGSTOP"),
    thaw: () => server.child.kill("SIGCONT"),
  }
  if (started) await redis.start()
  return redis
}

/** A connection that can send commands; `open` makes its socket. */
export function connect(port, open = () => net.connect(port, "127.0.0.1")) {
  return new Promise((resolve, reject) => {
    const socket = open().unref()
    const waiting = []
    let bytes = Buffer.alloc(0)
    const client = {
      closed: false,
      close: () => socket.destroy(),
      call(words) {
        return new Promise((resolve, reject) => {
          const late = setTimeout(() => reject(new Error(`redis: no answer to ${words[0]}`)), 5000)
          const once = (done) => (value) => {
            clearTimeout(late)
            done(value)
          }
          waiting.push({ answer: once(resolve), refuse: once(reject) })
          const parts = words.map((word) => `$${Buffer.byteLength(String(word))}\r\n${word}\r\n`)
          socket.write(`*${words.length}\r\n${parts.join("")}`)
        })
      },
    }
    socket.on("connect", () => resolve(client))
    socket.on("error", reject)
    socket.on("close", () => {
      client.closed = true
      for (const { refuse } of waiting.splice(0)) refuse(new Error("redis closed the connection"))
    })
    socket.on("data", (chunk) => {
      bytes = Buffer.concat([bytes, chunk])
      for (let found = parse(bytes, 0); found; found = parse(bytes, 0)) {
        bytes = bytes.subarray(found.end)
        const { answer, refuse } = waiting.shift()
        if (found.value instanceof Error) refuse(found.value)
        else answer(found.value)
      }
    })
  })
}

/** One RESP2 value at `at`, and where it ends; nothing while it is not all there. */
function parse(bytes, at) {
  const lineEnd = bytes.indexOf("\r\n", at)
  if (lineEnd < 0) return null
  const line = bytes.toString("utf8", at + 1, lineEnd)
  const end = lineEnd + 2
  switch (String.fromCharCode(bytes[at])) {
    case "+":
      return { value: line, end }
    case "-":
      return { value: new Error(line), end }
    case ":":
      return { value: Number(line), end }
    case "$": {
      const length = Number(line)
      if (length < 0) return { value: null, end }
      if (bytes.length < end + length + 2) return null
      return { value: bytes.toString("utf8", end, end + length), end: end + length + 2 }
    }
    case "*": {
      const items = []
      let next = end
      for (let i = 0; i < Number(line); i++) {
        const item = parse(bytes, next)
        if (!item) return null
        items.push(item.value)
        next = item.end
      }
      return { value: items, end: next }
    }
    default:
      throw new Error(`not RESP: ${line}`)
  }
}
