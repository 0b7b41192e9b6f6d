// A TCP proxy, between a node and Redis or a client and a node, for faults of the network: a black hole, a hard cut, answers
// that do not arrive, a long way. What it holds back it delivers later, in order, as TCP does.

import { once } from "node:events"
import net from "node:net"

/** Starts a proxy to `target`, a port of this machine. It passes everything on at first. */
export async function startProxy(target) {
  const pairs = new Set()
  let mode = { up: "pass", down: "pass", delay: 0, refuse: false }

  /** One direction of one connection. */
  const pump = (from, to, direction) => {
    const held = []
    let timer = null
    const flush = () => {
      timer = null
      while (mode[direction] === "pass" && held.length > 0) {
        const wait = held[0].due - performance.now()
        if (wait > 0) {
          timer = setTimeout(flush, wait)
          return
        }
        to.write(held.shift().chunk)
      }
    }
    from.on("data", (chunk) => {
      held.push({ chunk, due: performance.now() + mode.delay })
      if (!timer) flush()
    })
    return { flush: () => timer || flush(), end: () => clearTimeout(timer) }
  }

  const server = net.createServer((client) => {
    if (mode.refuse) return client.resetAndDestroy()
    const upstream = net.connect(target, "127.0.0.1")
    const pair = { client, upstream, pumps: [pump(client, upstream, "up"), pump(upstream, client, "down")] }
    pairs.add(pair)
    const end = () => {
      pairs.delete(pair)
      pair.pumps.forEach((one) => one.end())
      client.destroy()
      upstream.destroy()
    }
    for (const socket of [client, upstream]) {
      socket.setNoDelay(true)
      socket.on("error", end)
      socket.on("close", end)
    }
  })
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  server.unref()

  const become = (change) => {
    mode = { up: "pass", down: "pass", delay: 0, refuse: false, ...change }
    for (const { pumps } of pairs) pumps.forEach((one) => one.flush())
  }
  return {
    port: server.address().port,
    url: `redis://127.0.0.1:${server.address().port}`,
    /** Nothing passes and nothing is closed. */
    blackHole: () => become({ up: "hold", down: "hold" }),
    /** Commands arrive and are carried out, answers do not come. */
    loseAnswers: () => become({ down: "hold" }),
    /** Each direction takes `ms` longer. */
    delay: (ms) => become({ delay: ms }),
    /** Every connection breaks, and no new one is made. */
    cut() {
      become({ refuse: true })
      for (const { client, upstream } of pairs) {
        client.resetAndDestroy()
        upstream.destroy()
      }
    },
    /** As at first. */
    heal: () => become({}),
    close() {
      server.close()
      for (const { client, upstream } of pairs) {
        client.destroy()
        upstream.destroy()
      }
    },
  }
}
