// Server-sent events: a watcher that applies what it is told has the roster, whatever happens.

import assert from "node:assert/strict"
import { once } from "node:events"
import net from "node:net"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, connectRaw, counted, fresh, joinAs, same, until } from "./client.mjs"
import { startRedis } from "./redis.mjs"
import { startNode } from "./server.mjs"

const enc = encodeURIComponent
const watchers = new Set()

/** Watches a channel and keeps its roster by what it is told; what does not fit is an error. */
async function watch(node, channel, { headers = {}, query = "" } = {}) {
  const stop = new AbortController()
  const stream = await fetch(`${node.url}/v1/channels/${enc(channel)}/presence/events${query}`, { headers, signal: stop.signal })
  assert.equal(stream.status, 200)
  const watcher = {
    events: [],
    entries: new Map(),
    id: null,
    ended: false,
    errors: [],
    users: () => [...new Set([...watcher.entries.values()].map((one) => one.user))].sort(),
    /** The roster in the form of the members call. */
    members: () =>
      watcher.users().map((user) => {
        const mine = [...watcher.entries.values()].filter((one) => one.user === user)
        mine.sort((a, b) => Date.parse(a.since) - Date.parse(b.since))
        return { user, connections: mine.length, metas: mine.map((one) => one.meta), online_since: mine[0].since }
      }),
    async stop() {
      watchers.delete(watcher)
      stop.abort()
      await reading
    },
  }
  watchers.add(watcher)
  const apply = ({ event, id, data }) => {
    if (!event) return
    const told = JSON.parse(data)
    watcher.events.push({ event, ...told })
    watcher.id = id
    assert.equal(told.version, id)
    assert.equal(told.channel, channel)
    if (event === "snapshot") {
      watcher.entries.clear()
      for (const { user, connections, metas, refs, since, online_since } of told.members) {
        assert.deepEqual([metas.length, refs.length, since.length, online_since], [connections, connections, connections, since[0]])
        refs.forEach((ref, at) => watcher.entries.set(ref, { user, meta: metas[at], since: since[at] }))
      }
    } else {
      for (const { user, ref, prev, meta, since } of told.joins) {
        assert.ok(!watcher.entries.has(ref), `${ref} joins twice`)
        if (prev) assert.equal(watcher.entries.get(prev)?.user, user, "an update of what is there")
        watcher.entries.set(ref, { user, meta, since })
      }
      for (const { ref, user } of told.leaves) {
        assert.equal(watcher.entries.get(ref)?.user, user, `${ref} leaves unseen`)
        watcher.entries.delete(ref)
      }
    }
    assert.deepEqual([told.online, told.connections], [watcher.users().length, watcher.entries.size])
  }
  const reading = (async () => {
    let text = ""
    const decoder = new TextDecoder()
    for await (const chunk of stream.body) {
      text += decoder.decode(chunk, { stream: true })
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const lines = text.slice(0, end).split("\n").filter((line) => !line.startsWith(":") && line !== "")
        text = text.slice(end + 2)
        apply(Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).replace(/^ /, "")])))
      }
    }
    watcher.ended = true
  })().catch((error) => {
    if (error.name !== "AbortError") watcher.errors.push(error)
  })
  return watcher
}

async function closeWatchers() {
  const all = [...watchers]
  for (const watcher of all) await watcher.stop()
  for (const { errors } of all) assert.deepEqual(errors, [])
}

const gauge = async (node, name) => Number(new RegExp(`^rollcall_${name} (\\d+)`, "m").exec((await node.get("/metrics")).text)[1])

describe("watching on one node", () => {
  let node
  before(async () => (node = await startNode({ ROLLCALL_GRACE_SECONDS: "0", ROLLCALL_MAX_OUTPUT_BYTES: "65536", ROLLCALL_MAX_PRESENCE_RATE: "1000", ROLLCALL_MAX_PRESENCE_BURST: "1000" })))
  after(() => node?.stop())
  afterEach(closeAll)
  afterEach(closeWatchers)

  test("nobody yet, then somebody, and metas of any form stay one event", async () => {
    const room = fresh("line\nbreak")
    const watcher = await watch(node, room)
    await until(() => watcher.events[0]?.event === "snapshot", "an empty snapshot")
    assert.equal(watcher.events[0].online, 0)
    const raw = await connectRaw(node)
    raw.socket.send(`["1","1",${JSON.stringify(room)},"phx_join",{"user_id":"a\\nb","meta":{"list":[1,\n\n2,\r3]}}]`)
    await until(() => same(watcher.members().map(({ user, metas }) => [user, metas]), [["a\nb", [{ list: [1, 2, 3] }]]]), "the member", 5000, watcher.members)
    const second = await watch(node, room)
    await until(() => same(second.members(), watcher.members()), "the snapshot says the same", 5000, second.members)
    await counted(node, room, 1)
  })

  test("who comes back with the current version is sent only what comes after it", async () => {
    const room = fresh()
    await joinAs(node, room, "ada")
    const first = await watch(node, room)
    await until(() => same(first.users(), ["ada"]), "ada")
    const known = { headers: { "Last-Event-ID": first.id } }
    const again = await watch(node, room, known)
    again.entries = new Map(first.entries)
    await joinAs(node, room, "bo")
    await until(() => same(again.users(), ["ada", "bo"]), "bo")
    assert.deepEqual(again.events.map((one) => one.event), ["diff"])
    const late = await watch(node, room, { query: `?last_event_id=${known.headers["Last-Event-ID"]}` })
    await until(() => same(late.users(), ["ada", "bo"]), "both")
    assert.deepEqual(late.events.map((one) => one.event), ["snapshot"])
  })

  test("a watcher that does not read is put out, and others are undisturbed", async () => {
    const room = fresh()
    const stalled = net.connect(node.port, "127.0.0.1")
    await once(stalled, "connect")
    stalled.write(`GET /v1/channels/${room}/presence/events HTTP/1.1\r\nHost: x\r\n\r\n`)
    const watcher = await watch(node, room)
    await until(async () => (await gauge(node, "event_streams")) === 2, "two streams")
    stalled.pause()
    const raw = await connectRaw(node)
    const { ref } = await raw.join(room, { user_id: "busy" })
    let n = 0
    const flood = setInterval(() => {
      raw.frames.length = 0
      for (let i = 0; i < 10; i++) raw.send(ref, String(++n), room, "presence", { type: "presence", event: "track", payload: { n, blob: "x".repeat(3000) } })
    }, 20)
    try {
      await until(async () => (await gauge(node, "event_streams")) === 1, "it is put out", 30_000)
    } finally {
      clearInterval(flood)
      stalled.destroy()
    }
    await until(() => watcher.members()[0]?.metas[0].n === n, "the other one has it all", 5000, () => [watcher.members()[0]?.metas[0].n, n])
    assert.equal(watcher.ended, false)
  })

  test("who goes leaves nothing behind", async () => {
    const watcher = await watch(node, fresh())
    await until(async () => (await gauge(node, "event_streams")) === 1, "a stream")
    await watcher.stop()
    await until(async () => (await gauge(node, "event_streams")) === 0, "no stream", 2000)
  })

  test("every path and method of the description is there", async () => {
    const { json: document } = await node.get("/openapi.json")
    const socket = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "not a key" }
    for (const [path, methods] of Object.entries(document.paths)) {
      // A stream would not end by itself; and this name is refused.
      const target = path.replace("{channel}", path.endsWith("/events") ? "x".repeat(201) : "a").replace("/apps/{id}", "/apps/demo").replace(/[{}]/g, "")
      for (const method of Object.keys(methods)) {
        const { status, type } = await node.request(method.toUpperCase(), target, { headers: path.startsWith("/socket") ? socket : {} })
        assert.ok(![404, 405].includes(status), `${method} ${path}: ${status}`)
        const known = methods[method].responses[status]
        assert.ok(known, `${method} ${path} answers ${status}, which is not described`)
        if (status >= 400 && !path.startsWith("/socket")) assert.match(type, /^application\/problem\+json/)
      }
    }
  })
})

describe("watching on many nodes", () => {
  let redis, nodes
  before(async () => {
    redis = await startRedis()
    const env = { REDIS_URL: redis.url, ROLLCALL_GRACE_SECONDS: "0", ROLLCALL_MAX_PRESENCE_RATE: "1000", ROLLCALL_MAX_PRESENCE_BURST: "1000" }
    nodes = await Promise.all([startNode(env), startNode(env)])
  })
  after(async () => {
    await Promise.all(nodes?.map((node) => node.stop()) ?? [])
    await redis?.stop()
  })
  afterEach(closeAll)
  afterEach(closeWatchers)

  test("watchers everywhere have the exact roster through joins, updates and leaves", async () => {
    const room = fresh()
    const all = [await watch(nodes[1], room)]
    const inside = []
    for (let i = 0; i < 40; i++) {
      if (inside.length > 8 || (inside.length > 3 && i % 3 === 0)) {
        const [gone] = inside.splice((i * 7) % inside.length, 1)
        if (i % 2) gone.raw.socket.close()
        else gone.raw.send(gone.ref, "9", room, "phx_leave", {})
      } else {
        const raw = await connectRaw(nodes[i % 2])
        const { ref } = await raw.join(room, { user_id: `u${i % 5}`, meta: { i } })
        inside.push({ raw, ref })
      }
      const some = inside[(i * 3) % inside.length]
      some.raw.send(some.ref, String(100 + i), room, "presence", { type: "presence", event: "track", payload: { now: i } })
      if (i % 10 === 5) all.push(await watch(nodes[(i / 5) % 2 | 0], room))
    }
    const told = async (node) => (await node.get(`/v1/channels/${enc(room)}/presence`)).json
    await until(
      async () => {
        for (const node of nodes) {
          const { members, connections } = await told(node)
          if (connections !== inside.length) return false
          const plain = (list) => list.map(({ metas, ...rest }) => ({ ...rest, metas: metas.map((meta) => JSON.stringify(meta)).sort() }))
          for (const watcher of all) if (!same(plain(watcher.members()), plain(members))) return false
        }
        return true
      },
      "everyone agrees",
      8000,
      async () => [await told(nodes[0]), ...all.map((watcher) => watcher.members())],
    )
    assert.ok(all[0].events.length > 5)
  })

  test("a node that goes away ends its streams, and the others go on", async () => {
    const room = fresh()
    const third = await startNode({ REDIS_URL: redis.url })
    const [here, there] = [await watch(nodes[0], room), await watch(third, room)]
    await joinAs(nodes[0], room, "ada")
    await until(() => same(here.users(), ["ada"]) && same(there.users(), ["ada"]), "ada")
    const { code, ms } = await third.stop()
    assert.equal(code, 0)
    assert.ok(ms < 8000, String(ms))
    await until(() => there.ended, "an orderly end")
    assert.equal(here.ended, false)
    const next = await watch(nodes[1], room, { headers: { "Last-Event-ID": there.id } })
    await until(() => next.events[0]?.event === "snapshot" && same(next.users(), ["ada"]), "elsewhere there is a new snapshot")
  })

  test("a revoked session's stream ends, and strangers get none", async () => {
    const SERVICE_KEY = "a service key for tests"
    const strict = await startNode({ REDIS_URL: redis.url, ROLLCALL_AUTH: "session", SERVICE_KEY })
    const service = { Authorization: `Bearer ${SERVICE_KEY}` }
    try {
      assert.equal((await strict.get("/v1/channels/a/presence/events")).status, 401)
      const { json } = await strict.post("/v1/sessions", { user_id: "ada" }, service)
      const watcher = await watch(strict, fresh(), { query: `?token=${json.access_token}` })
      await until(() => watcher.events.length === 1, "the snapshot")
      assert.equal((await strict.request("DELETE", `/v1/sessions/${json.access_token}`, { headers: service })).status, 204)
      await until(() => watcher.ended, "it ends", 2000)
    } finally {
      await strict.stop()
    }
  })
})
