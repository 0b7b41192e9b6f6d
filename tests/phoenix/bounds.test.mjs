// Every limit has a test that hits it (guarantee G6): those which no other file hits are here. Floods and
// storms are measured: memory stays under a bound, and others are served meanwhile.

import assert from "node:assert/strict"
import net from "node:net"
import path from "node:path"
import { after, afterEach, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import { closeAll, connectRaw, count, counted, fresh, holds, joinAs, refused, until } from "./client.mjs"
import { launch, startNode } from "./server.mjs"

const MB = 1 << 20
const SERVICE_KEY = "bounds-service-key"
const CROWD = path.join(path.dirname(fileURLToPath(import.meta.url)), "crowd.mjs")

/** The problem of that name that /readyz tells, if any. */
const problem = async (node, what) => (await node.get("/readyz")).json.problems.find((one) => one.what === what)
const metric = async (node, name) => {
  const { text } = await node.get("/metrics")
  const line = text.split("\n").find((line) => line.startsWith(`rollcall_${name} `))
  return line ? Number(line.split(" ").pop()) : undefined
}

async function session(node, user) {
  const { status, json } = await node.post("/v1/sessions", { user_id: user }, { Authorization: `Bearer ${SERVICE_KEY}` })
  assert.equal(status, 201)
  return json.access_token
}

describe("limits of one connection", () => {
  let node
  before(async () => {
    node = await startNode({
      ROLLCALL_MAX_FRAME_BYTES: "2048",
      ROLLCALL_MAX_META_BYTES: "100",
      ROLLCALL_MAX_USER_CHARS: "5",
      ROLLCALL_MAX_CHANNEL_BYTES: "40",
      ROLLCALL_MAX_CHANNELS: "2",
      ROLLCALL_MAX_PRESENCE_RATE: "2",
      ROLLCALL_MAX_PRESENCE_BURST: "3",
      ROLLCALL_MAX_MESSAGE_RATE: "5",
    })
  })
  after(() => node?.stop())
  afterEach(closeAll)

  test("ROLLCALL_MAX_FRAME_BYTES: the socket closes with 1009", async () => {
    const raw = await connectRaw(node)
    raw.socket.on("error", () => {})
    raw.socket.send("x".repeat(2048))
    await raw.heartbeat()
    raw.socket.send("x".repeat(2049))
    assert.equal((await raw.end()).code, 1009)
  })

  test("ROLLCALL_MAX_META_BYTES, _USER_CHARS, _CHANNEL_BYTES and _CHANNELS: a reason each, and the socket lives on", async () => {
    const raw = await connectRaw(node)
    const join = async (topic, payload) => {
      const { status, response } = await raw.join(topic, payload)
      return status === "ok" ? "ok" : response.reason
    }
    // Of these messages a client may send no more than five a second and twice that at once.
    assert.match(await join(fresh(), { user_id: "ada", meta: { a: "x".repeat(100) } }), /100 bytes/)
    assert.match(await join(fresh(), { user_id: "adaada" }), /5 characters/)
    assert.match(await join("x".repeat(41), { user_id: "ada" }), /40 bytes/)
    assert.equal(await join(fresh("a"), { user_id: "éééçç" }), "ok")
    assert.equal(await join("x".repeat(40), { user_id: "ada" }), "ok")
    assert.equal(await join(fresh("c"), { user_id: "ada" }), "too many channels joined")
    await raw.heartbeat()
  })

  test("ROLLCALL_MAX_PRESENCE_RATE and _BURST: what is over it waits, and the newest wins", async () => {
    const room = fresh()
    const witness = await joinAs(node, room, "wit")
    const raw = await connectRaw(node)
    const { ref } = await raw.join(room, { user_id: "ada", meta: { n: 0 } })
    for (let n = 1; n <= 8; n++) raw.send(ref, `t${n}`, room, "presence", { type: "presence", event: "track", payload: { n } })
    for (let n = 1; n <= 8; n++) assert.equal((await raw.reply(`t${n}`)).payload.status, "ok")
    await until(() => witness.roster().ada?.[0]?.n === 8, "the newest is shown", 5000, witness.roster)
    const seen = witness.diffsOf("ada").length
    assert.ok(seen <= 1 + 3 + 2, `${seen} diffs for 9 metas`)
    assert.ok((await metric(node, "presence_calls_held_total")) > 0)
  })

  test("ROLLCALL_MAX_MESSAGE_RATE: what is over it is refused with when to try again", async () => {
    const raw = await connectRaw(node)
    for (let n = 0; n < 30; n++) raw.send(null, `h${n}`, "phoenix", "heartbeat", {})
    const refusal = await until(() => raw.frames.find((one) => one.payload?.response?.reason === "rate limited"), "one is refused", 15_000)
    assert.ok(refusal.payload.response.retry_after_ms > 0)
    assert.equal(raw.ended, null)
  })
})

describe("limits of users and addresses", () => {
  let node
  before(async () => {
    node = await startNode({ SERVICE_KEY, ROLLCALL_MAX_USER_CONNECTIONS: "2", ROLLCALL_MAX_ADDRESS_CONNECTIONS: "4" })
  })
  after(() => node?.stop())
  afterEach(closeAll)

  test("ROLLCALL_MAX_USER_CONNECTIONS: 429 for the user, sockets and event streams alike; a place that is left is free", async () => {
    const token = await session(node, "ada")
    const one = await connectRaw(node, { query: { vsn: "2.0.0", token } })
    await connectRaw(node, { query: { vsn: "2.0.0", token: await session(node, "ada") } })
    const refusal = await refused(node, { query: { vsn: "2.0.0", token } })
    assert.equal(refusal.status, 429)
    assert.ok(Number(refusal.headers["retry-after"]) > 0)
    assert.match(JSON.parse(refusal.body).detail, /too many connections of this user; at most 2/)
    assert.equal((await node.get(`/v1/channels/a/presence/events?token=${token}`)).status, 429)
    assert.equal((await problem(node, "user_full")).users_affected, true)
    assert.match(node.log(), /problem="user_full"/)
    assert.ok(!node.log().includes(token))

    // A name that is only claimed counts for nothing: nobody shuts ada out by claiming it.
    const claims = await connectRaw(node, { query: { vsn: "2.0.0", user_id: "ada" } })
    assert.equal((await claims.join(fresh(), { user_id: "ada" })).status, "ok")
    one.close()
    await until(() => connectRaw(node, { query: { vsn: "2.0.0", token } }).then(() => true, () => false), "a place is free again")
  })

  test("ROLLCALL_MAX_ADDRESS_CONNECTIONS: 429 for the address, and others connect", async () => {
    const here = { localAddress: "127.0.0.2" }
    const all = await Promise.all(Array.from({ length: 4 }, () => connectRaw(node, here)))
    const refusal = await refused(node, here)
    assert.equal(refusal.status, 429)
    assert.match(JSON.parse(refusal.body).detail, /too many connections from this address; at most 4/)
    await connectRaw(node, { localAddress: "127.0.0.3" })
    assert.equal((await problem(node, "address_full")).users_affected, true)
    all[0].close()
    await until(() => connectRaw(node, here).then(() => true, () => false), "a place is free again")
    assert.ok((await metric(node, "quota_refusals_total")) > 0)
  })
})

describe("limits of a node and of a channel", () => {
  let node
  before(async () => {
    node = await startNode({ ROLLCALL_MAX_NODE_CHANNELS: "2", ROLLCALL_MAX_CHANNEL_MEMBERS: "2", ROLLCALL_GRACE_SECONDS: "0" })
  })
  after(() => node?.stop())
  afterEach(closeAll)

  test("ROLLCALL_MAX_NODE_CHANNELS and ROLLCALL_MAX_CHANNEL_MEMBERS: a reason each, and room again later", async () => {
    const [a, b] = [fresh("a"), fresh("b")]
    const ada = await joinAs(node, a, "ada")
    await joinAs(node, b, "ada")
    const raw = await connectRaw(node)
    assert.deepEqual(await reasonOf(raw, fresh("c"), { user_id: "cyd" }), "too many channels on this node")
    const events = await node.get(`/v1/channels/${encodeURIComponent(fresh("c"))}/presence/events`)
    assert.deepEqual([events.status, events.json.detail], [503, "too many channels on this node"])
    assert.equal((await problem(node, "channels_full")).users_affected, true)

    await joinAs(node, a, "bob")
    await counted(node, a, 2)
    assert.equal(await reasonOf(raw, a, { user_id: "cyd" }), "channel has its 2 members")
    // Who is in already may come with another device, and who only watches is no member.
    const observed = await raw.join(a, { user_id: "cyd", observe: true })
    assert.equal(observed.status, "ok")
    const track = await raw.call(a, "presence", { type: "presence", event: "track", payload: {} }, observed.ref)
    assert.deepEqual([track.status, track.response.reason], ["error", "channel has its 2 members"])
    const second = await connectRaw(node)
    assert.equal((await second.join(a, { user_id: "ada" })).status, "ok")
    await counted(node, a, 2, 3)
    assert.equal((await problem(node, "members_full")).detail, a)

    second.close()
    ada.channel.leave()
    await counted(node, a, 1)
    const again = await raw.call(a, "presence", { type: "presence", event: "track", payload: {} }, observed.ref)
    assert.equal(again.status, "ok")
    await counted(node, a, 2)
  })
})

const reasonOf = async (raw, topic, payload) => {
  const { status, response } = await raw.join(topic, payload)
  assert.equal(status, "error")
  return response.reason
}

describe("liveness", () => {
  let node
  before(async () => (node = await startNode({ ROLLCALL_PING_SECONDS: "1", ROLLCALL_SILENCE_SECONDS: "3", ROLLCALL_GRACE_SECONDS: "0" })))
  after(() => node?.stop())
  afterEach(closeAll)

  test("a client that never answers pings is ended, and its member is gone; one that does only that stays", async () => {
    const room = fresh()
    const witness = await joinAs(node, room, "witness")
    const lively = await connectRaw(node)
    await lively.join(room, { user_id: "lively" })
    const silent = await connectRaw(node, { autoPong: false })
    let pings = 0
    silent.socket.on("ping", () => pings++)
    await silent.join(room, { user_id: "silent" })
    const began = Date.now()
    await until(() => witness.sees("witness", "lively", "silent"), "all are there")
    const { code, reason } = await silent.end(10_000)
    assert.deepEqual({ code, reason }, { code: 1001, reason: "silent" })
    assert.ok(Date.now() - began >= 2_000, "not before its time")
    assert.ok(pings >= 1, "it was asked")
    await until(() => witness.sees("witness", "lively"), "its member is gone", 5000, witness.users)
    await holds(() => lively.ended === null && witness.sees("witness", "lively"), "who answers stays", 4000)
    assert.equal(await metric(node, "silent_sockets_total"), 1)
  })
})

describe("what is no WebSocket on a WebSocket's path", () => {
  let node
  before(async () => (node = await startNode()))
  after(() => node?.stop())

  test("is answered with a problem that says so", async () => {
    // By hand: Node's client takes any answer that names an upgrade for one.
    const get = async (headers) => {
      const socket = net.connect(node.port, "127.0.0.1").unref()
      let heard = ""
      socket.on("data", (data) => (heard += data.toString("latin1")))
      const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
      socket.write(`GET /socket/websocket HTTP/1.1\r\nHost: 127.0.0.1\r\n${lines.join("")}\r\n`)
      await until(() => /\r\n\r\n.*\}/s.test(heard), "an answer with a body", 5000, () => heard)
      socket.destroy()
      return heard
    }
    const plain = await get({})
    assert.match(plain, /^HTTP\/1\.1 426 /)
    assert.match(plain, /^upgrade: websocket\r$/im)
    assert.match(plain, /application\/problem\+json/)
    const upgrade = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13" }
    const key = Buffer.alloc(16).toString("base64")
    const other = await get({ ...upgrade, "Sec-WebSocket-Version": "99", "Sec-WebSocket-Key": key })
    assert.match(other, /^HTTP\/1\.1 426 /)
    assert.match(other, /^sec-websocket-version: 13\r$/im)
    const wrong = await get({ ...upgrade, "Sec-WebSocket-Key": "short" })
    assert.match(wrong, /^HTTP\/1\.1 400 /)
    assert.match(wrong, /application\/problem\+json/)
    assert.equal((await node.post("/socket/websocket", {})).status, 405)
    assert.equal((await node.get("/v1/channels/100%/presence/count")).status, 400)
    assert.equal((await node.get("/v1/channels/100%25/presence/count")).json.channel, "100%")
    const head = await node.request("HEAD", "/v1/channels/a/presence/count")
    assert.deepEqual([head.status, head.text], [200, ""])
  })
})

describe("floods and storms", () => {
  let node
  afterEach(async () => {
    await closeAll()
    await node?.stop()
  })

  // 400 connections with 20 channels each, every member alone with a meta of 2 KB: 8,000 members. What is kept
  // of one is its meta, the roster and its frame; 24 KB for each is the bound, and 30 MB for what comes and goes.
  test("joins from one address as fast as they go: memory under a bound, and others are served", { timeout: 180_000 }, async () => {
    const [connections, channels] = [400, 20]
    node = await startNode({
      ROLLCALL_MAX_ADDRESS_CONNECTIONS: String(connections),
      ROLLCALL_MAX_CHANNELS: String(channels),
      ROLLCALL_MAX_NODE_CHANNELS: "20000",
    })
    const room = fresh("quiet")
    const from = (at) => ({ localAddress: `127.0.0.${at}` })
    const witness = await connectRaw(node, from(3))
    await witness.join(room, { user_id: "witness" })
    const before = node.rss()
    let most = before
    let refusals = 0
    let waits = []
    let over = false

    const flood = async (mine) => {
      for (let i = 0; i < 30; i++) {
        let raw
        try {
          raw = await connectRaw(node, from(2))
        } catch (error) {
          assert.equal(error.status, 429, String(error))
          refusals++
          continue
        }
        raw.socket.on("error", () => {})
        // All at once, without waiting for answers, and twice as many as it may.
        for (let n = 0; n < 2 * channels; n++) raw.send(`${n}`, `${n}`, fresh(`flood${mine}`), "phx_join", { user_id: "flood", meta: { blob: "x".repeat(2000) } })
      }
    }
    const probes = (async () => {
      while (!over) {
        const began = performance.now()
        const raw = await connectRaw(node, from(4))
        assert.equal((await raw.join(room, { user_id: "visitor" })).status, "ok")
        waits.push(performance.now() - began)
        raw.close()
        most = Math.max(most, node.rss())
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
    })()
    await Promise.all(Array.from({ length: 20 }, (_, mine) => flood(mine)))
    await until(async () => (await metric(node, "members")) >= connections * channels, "all it may join is joined", 90_000, () => metric(node, "members"))
    over = true
    await probes
    waits.sort((a, b) => a - b)
    const [grown, bound] = [(most - before) / MB, (connections * channels * 24 * 1024) / MB + 30]
    console.log(`flood: ${connections * channels} members, ${grown.toFixed(0)} MB of at most ${bound.toFixed(0)}, ${refusals} refused; ` + `a visitor's join ${waits.at(waits.length >> 1).toFixed(0)} ms, at most ${waits.at(-1).toFixed(0)} ms`)
    assert.ok(refusals >= 20 * 30 - connections, `${refusals} refused`)
    assert.ok((await metric(node, "members")) <= connections * channels + 2, "no more than it may")
    assert.ok(grown < bound, `${grown} MB`)
    // This process is flooding and looking on at the same time: a bound on being served at all.
    assert.ok(waits.at(-1) < 5_000, `a visitor waited ${waits.at(-1)} ms`)
    await witness.heartbeat()
  })

  test("5,000 disconnects at once: who comes meanwhile is let in at once", { timeout: 240_000 }, async () => {
    const [crowd, rooms, patience] = [5_000, 50, 500]
    node = await startNode({ ROLLCALL_GRACE_SECONDS: "1" })
    const clients = launch(process.execPath, [CROWD, String(node.port), String(crowd), String(rooms)], process.env)
    await until(() => clients.log().includes(`joined ${crowd}`), "all have joined", 180_000, clients.log)
    await until(async () => (await metric(node, "members")) === crowd, "all are counted", 20_000, () => metric(node, "members"))

    // One after the other, as fast as they go; the time between two answers is the stall as a client sees it.
    const room = fresh("probe")
    const waits = []
    let over = false
    const probe = async () => {
      while (!over) {
        const began = performance.now()
        const raw = await connectRaw(node)
        assert.equal((await raw.join(room, { user_id: "probe" })).status, "ok")
        waits.push(performance.now() - began)
        raw.close()
        await new Promise((resolve) => setTimeout(resolve, 3))
      }
    }
    const probing = Promise.all([probe(), probe()])
    await until(() => waits.length > 50, "probes run")
    const calm = Math.max(...waits.splice(0))
    const began = performance.now()
    await clients.stop("SIGKILL")
    await until(async () => (await metric(node, "connections")) < 20, "all sockets are gone", 60_000)
    const gone = performance.now() - began
    await until(async () => (await count(node, "crowd:0")).online === 0, "and the members after the grace", 60_000)
    await until(() => waits.length > 50, "probes ran on")
    over = true
    await probing
    const stall = Math.max(...waits)
    console.log(`storm: ${crowd} sockets gone in ${gone.toFixed(0)} ms; longest stall ${stall.toFixed(0)} ms of ${waits.length} probes (${calm.toFixed(0)} ms before)`)
    assert.ok(stall < patience, `a client waited ${stall} ms`)
  })
})

describe("diffs larger than all the room there is", () => {
  let node
  before(async () => (node = await startNode({ ROLLCALL_MAX_OUTPUT_BYTES: "65536", ROLLCALL_MAX_PRESENCE_RATE: "1000", ROLLCALL_MAX_PRESENCE_BURST: "1000" })))
  after(() => node?.stop())
  afterEach(closeAll)

  // 60 metas of 4 KB that change at once are a diff of half a megabyte, eight times the limit.
  test("cut nobody off who reads, also some in a row", { timeout: 60_000 }, async () => {
    const room = fresh()
    const [members, rounds] = [60, 4]
    const raws = []
    for (let i = 0; i < members; i++) {
      const raw = await connectRaw(node)
      raws.push({ raw, ref: (await raw.join(room, { user_id: `u${i}` })).ref })
    }
    await counted(node, room, members)
    for (let round = 1; round <= rounds; round++) {
      for (const { raw, ref } of raws) {
        raw.frames.length = 0
        raw.send(ref, `r${round}`, room, "presence", { type: "presence", event: "track", payload: { round, blob: "x".repeat(3900) } })
      }
      const seen = (raw) => {
        const told = new Set()
        for (const { payload } of raw.got(room, "presence_diff")) {
          for (const [user, { metas }] of Object.entries(payload.joins)) if (metas.some((meta) => meta.round === round)) told.add(user)
        }
        return told.size
      }
      await until(() => raws.every(({ raw }) => raw.ended || seen(raw) === members), `round ${round} reached all`, 20_000, () => raws.map(({ raw }) => seen(raw)))
    }
    assert.deepEqual(raws.filter(({ raw }) => raw.ended).length, 0, "all are still there")
    assert.equal(await metric(node, "slow_readers_total"), 0)
  })
})

describe("draining", () => {
  let node
  afterEach(async () => {
    await closeAll()
    await node?.stop("SIGKILL")
  })

  test("clients are told in their own time; who comes meanwhile is told to go elsewhere; streams say when to come back", async () => {
    node = await startNode()
    const room = fresh()
    const raws = await Promise.all(Array.from({ length: 60 }, () => connectRaw(node)))
    await Promise.all(raws.map((raw, i) => raw.join(room, { user_id: `u${i}` })))
    const closed = []
    raws.forEach((raw, i) => raw.socket.on("close", (code) => closed.push({ i, code, at: performance.now() })))
    const stream = node.get(`/v1/channels/${encodeURIComponent(room)}/presence/events`, {})
    await until(async () => (await metric(node, "event_streams")) === 1, "the stream is open")
    const began = performance.now()
    const stopped = node.stop()
    await until(async () => (await node.get("/readyz")).status === 503, "not ready")
    const { headers, json } = await node.get("/readyz")
    assert.deepEqual([json.status, json.problems[0].what], ["draining", "draining"])
    assert.match(json.problems[0].detail, /connections and .* members left/)
    assert.ok(Number(headers["retry-after"]) > 0)
    const refusal = await refused(node)
    assert.equal(refusal.status, 503)
    assert.equal(refusal.headers.connection, "close")
    assert.ok(Number(refusal.headers["retry-after"]) > 0)
    const { text } = await stream
    const waits = [...text.matchAll(/^retry: (\d+)$/gm)].map(([, ms]) => Number(ms))
    assert.equal(waits.length, 2)
    assert.ok(waits[1] >= 2000 && waits[1] < 5000, `retry ${waits[1]}`)
    assert.equal((await stopped).code, 0)
    assert.equal(closed.length, 60)
    assert.ok(closed.every(({ code }) => code === 1012))
    assert.notDeepEqual(closed.map(({ i }) => i), closed.map(({ i }) => i).sort((a, b) => a - b), "in no order")
    const [first, last] = [closed[0].at - began, closed.at(-1).at - began]
    assert.ok(last - first > 1000 && last < 5000, `from ${first} to ${last} ms`)
    assert.match(node.log(), /draining/)
  })

  test("a second SIGTERM ends at once", async () => {
    node = await startNode()
    const raws = await Promise.all(Array.from({ length: 20 }, () => connectRaw(node)))
    await Promise.all(raws.map((raw, i) => raw.join(fresh(), { user_id: `u${i}` })))
    const stopped = node.stop()
    await until(async () => (await node.get("/readyz")).status === 503, "draining")
    const { code, ms } = await node.stop()
    assert.equal(code, 1)
    assert.ok(ms < 1000, `${ms} ms`)
    await stopped
    assert.match(node.log(), /asked to stop twice/)
  })
})
