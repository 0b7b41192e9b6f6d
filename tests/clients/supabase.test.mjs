// The conformance list for Supabase Realtime: with the real supabase-js, and with single frames.

import assert from "node:assert/strict"
import { createHmac } from "node:crypto"
import { after, afterEach, before, describe, test } from "node:test"
import WebSocket from "ws"
import { startRedis } from "../phoenix/redis.mjs"
import { holds, startNode, until } from "../phoenix/server.mjs"
import { endAll, fresh, join, same, supabaseClient } from "./people.mjs"
import { closeRaw, open, openArrays } from "./raw.mjs"

const SECRET = "a secret of at least sixteen bytes"
const base64 = (value) => Buffer.from(typeof value === "string" ? value : JSON.stringify(value)).toString("base64url")
/** A JWT that the nodes of the session tests accept. */
function jwt(claims, secret = SECRET) {
  const text = `${base64({ alg: "HS256", typ: "JWT" })}.${base64(claims)}`
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`
}
const soon = (seconds) => Math.floor(Date.now() / 1000) + seconds

const PATH = "/realtime/v1/websocket?apikey=any&vsn=2.0.0"
const on = (key, more = {}) => ({ config: { presence: { key, enabled: true }, ...more } })
const track = (payload, event = "track") => ({ type: "presence", event, ...(payload !== undefined && { payload }) })
const diffs = (raw) => raw.told.filter(([, , , event]) => event === "presence_diff").map((message) => message[4])
const states = (raw) => raw.told.filter(([, , , event]) => event === "presence_state").map((message) => message[4])

/** A binary broadcast (kind 3). */
function kind3(topic, event, payload, encoding, joinRef = "1", ref = "8") {
  const parts = [joinRef, ref, topic, event, ""].map((part) => Buffer.from(part))
  return Buffer.concat([Buffer.from([3, ...parts.map((part) => part.length), encoding]), ...parts, Buffer.from(payload)])
}

describe("Supabase conformance", () => {
  let node, redis, a, b, closed
  before(async () => {
    redis = await startRedis()
    const shared = { ROLLCALL_GRACE_SECONDS: "1", REDIS_URL: redis.url }
    ;[node, a, b, closed] = await Promise.all([
      startNode({ ROLLCALL_GRACE_SECONDS: "1" }),
      startNode(shared),
      startNode(shared),
      startNode({ ROLLCALL_AUTH: "session", JWT_SECRET: SECRET, ROLLCALL_ANONYMOUS: "on" }),
    ])
  })
  afterEach(async () => {
    closeRaw()
    await endAll()
  })
  after(async () => {
    await Promise.all([node, a, b, closed].map((one) => one?.stop()))
    await redis?.stop()
  })

  test("1. URL query order/params, vsn 2.0.0 default, v1 object mode still works", async () => {
    const client = supabaseClient(node, "key", { realtime: { logLevel: "info", log_level: "info" } })
    assert.match(client.realtime.endpointURL(), /vsn=2\.0\.0/)
    const channel = client.channel(fresh())
    await new Promise((resolve) => channel.subscribe((status) => status === "SUBSCRIBED" && resolve()))
    const old = supabaseClient(node, "key", { realtime: { vsn: "1.0.0" } })
    const room = fresh()
    const states = []
    const older = old.channel(room, { config: { presence: { key: "old" } } })
    older.on("presence", { event: "sync" }, () => states.push(Object.keys(older.presenceState())))
    older.on("broadcast", { event: "wave" }, ({ payload }) => states.push(payload))
    older.subscribe((status) => status === "SUBSCRIBED" && older.track({}))
    await until(() => states.some((state) => same(state, ["old"])), "the old client is in", 4000, () => states)
    const raw = await openArrays(node, "/realtime/v1/websocket?vsn=2.0.0&log_level=info&apikey=x")
    assert.equal((await raw.call(`realtime:${room}`, "phx_join", {})).status, "ok")
    raw.say(["1", "2", `realtime:${room}`, "broadcast", { type: "broadcast", event: "wave", payload: { to: "old" } }])
    await until(() => states.some((state) => same(state, { to: "old" })), "and hears")
    const unknown = await open(node, "/realtime/v1/websocket?vsn=9.9.9&apikey=x")
    assert.match(String(unknown.error), /403/)
  })

  test("2. Binary kind 3 in, kind 4 or text out; UTF-8 event/topic lengths in bytes; kinds 0/1/2 never sent", async () => {
    const topic = `realtime:${fresh()}-é`
    const [one, two, old] = [await openArrays(node, PATH), await openArrays(node, PATH), await open(node, PATH.replace("2.0.0", "1.0.0"))]
    for (const raw of [one, two]) await raw.call(topic, "phx_join", {})
    old.say({ topic, event: "phx_join", payload: {}, ref: "1", join_ref: "1" })
    await old.find(({ event }) => event === "phx_reply", "the old one is in")
    one.say(kind3(topic, "wéve", JSON.stringify({ hi: true }), 1))
    const heard = await two.find(([, , , event]) => event === "broadcast", "text")
    assert.deepEqual(heard, [null, null, topic, "broadcast", { type: "broadcast", event: "wéve", payload: { hi: true } }])
    await old.find(({ event }) => event === "broadcast", "the old one hears it too")
    one.say(kind3(topic, "raw é", [0, 255, 7], 0))
    await until(() => two.bytes.length === 1, "bytes")
    const [kind, topicLength, eventLength, meta, encoding] = two.bytes[0]
    assert.deepEqual([kind, topicLength, eventLength, meta, encoding], [4, Buffer.byteLength(topic), Buffer.byteLength("raw é"), 0, 0])
    assert.deepEqual([...two.bytes[0].subarray(5 + topicLength + eventLength)], [0, 255, 7])
    assert.equal(one.bytes.length + old.bytes.length, 0, "not to the sender, not to version 1")
    // A Phoenix client's raw bytes are not for it.
    const phoenix = await openArrays(node, "/socket/websocket?vsn=2.0.0")
    await phoenix.call(topic.slice(9), "phx_join", {})
    const parts = ["1", "9", topic.slice(9), "blob"].map((part) => Buffer.from(part))
    phoenix.say(Buffer.concat([Buffer.from([0, ...parts.map((part) => part.length)]), ...parts, Buffer.from([1])]))
    await until(() => phoenix.bytes.length === 1, "its echo")
    await holds(() => two.bytes.length === 1, "no more bytes", 300)
  })

  test("3. Join without access_token authorises by apikey; later access_token accepted without reply", async () => {
    const key = jwt({ role: "anon", exp: soon(600) })
    const raw = await openArrays(closed, `/realtime/v1/websocket?apikey=${key}&vsn=2.0.0`)
    const topic = `realtime:${fresh()}`
    assert.equal((await raw.call(topic, "phx_join", on("self-chosen"))).status, "ok")
    assert.equal((await raw.call(topic, "presence", track({ a: 1 }))).status, "ok")
    await until(() => diffs(raw).some(({ joins }) => "self-chosen" in joins), "under the name it gave itself")
    const before = raw.told.length
    raw.say(["1", "t", topic, "access_token", { access_token: jwt({ sub: "ada", role: "authenticated", exp: soon(600) }) }])
    await until(() => diffs(raw).some(({ joins }) => "ada" in joins), "then as the user of the token")
    assert(raw.told.slice(before).every(([, ref]) => ref !== "t"), "no reply")
    const moved = diffs(raw).at(-1)
    assert.deepEqual([Object.keys(moved.leaves), moved.joins.ada.metas[0].a], [["self-chosen"], 1])
    // A wrong one ends the channel with a word, and no key at all is not let in.
    raw.say(["1", "u", topic, "access_token", { access_token: jwt({ sub: "ada", exp: soon(-10) }) }])
    const told = await raw.find(([, , , event]) => event === "system", "why")
    assert.deepEqual([told[4].status, told[4].channel], ["error", topic.slice(9)])
    await raw.find(([join, ref, , event]) => event === "phx_close" && join === "1" && ref === "1", "the close")
    assert.match(String((await open(closed, "/realtime/v1/websocket?apikey=nothing&vsn=2.0.0")).error), /401/)
  })

  test("4. presence enabled: state after reply; disabled: none, and no diffs", async () => {
    const topic = `realtime:${fresh()}`
    const [loud, quiet, other] = [await openArrays(node, PATH), await openArrays(node, PATH), await openArrays(node, PATH)]
    await loud.call(topic, "phx_join", on("loud"))
    await until(() => states(loud).length === 1, "a state")
    assert.deepEqual(loud.told.map(([, , , event]) => event), ["phx_reply", "presence_state"])
    await quiet.call(topic, "phx_join", { config: { presence: { key: "quiet", enabled: false } } })
    await quiet.call(topic, "presence", track({ seen: true }))
    await until(() => diffs(loud).length === 1, "others see it")
    await other.call(topic, "phx_join", {})
    await until(() => states(other).length === 1, "an old client, which says nothing of it, is told the state")
    await holds(() => quiet.told.every(([, , , event]) => event === "phx_reply"), "the quiet one is told nothing", 400)
  })

  for (const name of ["one node", "two nodes"]) {
    const nodes = () => (name === "one node" ? [node, node] : [a, b])
    test(`5. track: ok + own diff; re-track = leave+join with phx_ref_prev; same payload = no diff; untrack = leave (${name})`, async () => {
      const topic = `realtime:${fresh()}`
      const [me, watcher] = [await openArrays(nodes()[0], PATH), await openArrays(nodes()[1], PATH)]
      await watcher.call(topic, "phx_join", on("watcher"))
      await me.call(topic, "phx_join", on("ada"))
      const say = (payload, event) => me.call(topic, "presence", track(payload, event))
      assert.deepEqual(await say({ s: 1 }), { status: "ok", response: {} })
      assert.equal((await say({ s: 2 })).status, "ok")
      assert.equal((await say({ s: 2 })).status, "ok")
      assert.equal((await say(undefined, "untrack")).status, "ok")
      assert.equal((await say(undefined, "untrack")).status, "ok")
      for (const raw of [me, watcher]) {
        await until(() => diffs(raw).length === 3, "three diffs", 4000, () => diffs(raw))
        const [first, second, third] = diffs(raw)
        const [one, two] = [first.joins.ada.metas[0], second.joins.ada.metas[0]]
        assert.deepEqual([one.s, two.s, two.phx_ref_prev], [1, 2, one.phx_ref])
        assert.equal(second.leaves.ada.metas[0].phx_ref, one.phx_ref)
        assert.deepEqual([third.joins, third.leaves.ada.metas[0].phx_ref], [{}, two.phx_ref])
      }
    })
  }

  test("6. TRACK upper case; missing payload treated as {}; non-object payload: error reply, channel alive", async () => {
    const topic = `realtime:${fresh()}`
    const raw = await openArrays(node, PATH)
    await raw.call(topic, "phx_join", on("ada"))
    assert.equal((await raw.call(topic, "presence", track(undefined, "TRACK"))).status, "ok")
    await until(() => diffs(raw).length === 1, "in")
    assert.deepEqual(Object.keys(diffs(raw)[0].joins.ada.metas[0]), ["phx_ref"])
    const refused = await raw.call(topic, "presence", track([1]))
    assert.deepEqual(refused, { status: "error", response: { reason: "Presence track payload must be a map" } })
    assert.equal((await raw.call(topic, "presence", track({ b: 1 }))).status, "ok")
  })

  test("7. Two tabs, one key: two entries under one key; one leaves, one remains", async () => {
    const room = fresh()
    const watcher = await join("supabase", a, room, "watcher")
    const [one] = [await join("supabase", a, room, "ada", { tab: 1 }), await join("supabase", b, room, "ada", { tab: 2 })]
    await until(() => watcher.metas("ada").length === 2, "two entries", 4000, () => watcher.metas("ada"))
    await one.leave()
    await until(() => same(watcher.metas("ada"), [{ tab: 2 }]), "one remains", 4000, () => watcher.metas("ada"))
  })

  test("8. Sixth presence call in 30 s: held back, not closed; the newest meta wins", async () => {
    const room = fresh()
    const client = supabaseClient(node)
    const channel = client.channel(room, { config: { presence: { key: "ada" } } })
    const statuses = []
    channel.on("presence", { event: "sync" }, () => {})
    await new Promise((resolve) => channel.subscribe((status) => (statuses.push(status), resolve())))
    const results = await Promise.all(Array.from({ length: 40 }, (_, n) => channel.track({ n })))
    assert(results.every((result) => result === "ok"), results.join())
    await until(() => channel.presenceState().ada?.[0].n === 39, "the newest is shown", 5000, () => channel.presenceState())
    assert.deepEqual(statuses, ["SUBSCRIBED"])
  })

  test("9. Socket drop: rejoin, state, SUBSCRIBED again, re-track; no duplicate meta from the old connection", async () => {
    const room = fresh()
    const watcher = await join("supabase", a, room, "watcher")
    const ada = await join("supabase", b, room, "ada", { name: "Ada" })
    await until(() => watcher.sees("ada", "watcher"), "both are in", 4000, watcher.users)
    ada.drop()
    await new Promise((resolve) => setTimeout(resolve, 2500))
    await until(() => ada.sees("ada", "watcher") && watcher.sees("ada", "watcher"), "back", 6000, watcher.users)
    await until(() => same(watcher.metas("ada"), [{ name: "Ada" }]), "one meta", 4000, () => watcher.metas("ada"))
  })

  test("10. Payload fields phx_ref/presence_ref and keys ids, __proto__ handled", async () => {
    const topic = `realtime:${fresh()}`
    const raw = await openArrays(node, PATH)
    for (const key of ["ids", "__proto__", "constructor"]) {
      const reply = await raw.call(topic, "phx_join", on(key))
      assert.deepEqual([reply.status, typeof reply.response.reason], ["error", "string"], key)
    }
    await raw.call(topic, "phx_join", on("ada"), "7")
    await raw.call(topic, "presence", track({ phx_ref: "x", presence_ref: "y", phx_ref_prev: "z", ok: 1 }), "7")
    await until(() => diffs(raw).length === 1, "in")
    const { phx_ref, ...rest } = diffs(raw)[0].joins.ada.metas[0]
    assert.deepEqual([rest, phx_ref === "x"], [{ ok: 1 }, false])
  })

  test("11. ack/self matrix; sender's second tab receives when self=false", async () => {
    for (const own of [false, true]) {
      for (const ack of [false, true]) {
        const room = fresh()
        const [client, other] = [supabaseClient(a), supabaseClient(b)]
        const heard = { me: 0, tab: 0 }
        const channel = client.channel(room, { config: { broadcast: { self: own, ack } } })
        channel.on("broadcast", { event: "wave" }, () => heard.me++)
        const tab = other.channel(room).on("broadcast", { event: "*" }, () => heard.tab++)
        for (const one of [channel, tab]) await new Promise((resolve) => one.subscribe((status) => status === "SUBSCRIBED" && resolve()))
        await until(async () => (await redis.call("PUBSUB", "NUMSUB", `presence:channel:${room}:events`))[1] === 2, "both nodes listen")
        assert.equal(await channel.send({ type: "broadcast", event: "wave", payload: {} }), "ok")
        await until(() => heard.tab === 1, "the other tab hears it")
        await holds(() => heard.me <= Number(own), "itself only if it asked", 200)
        assert.equal(heard.me, Number(own))
        await endAll()
      }
    }
    const raw = await openArrays(node, PATH)
    const topic = `realtime:${fresh()}`
    await raw.call(topic, "phx_join", { config: { broadcast: { ack: true } } })
    assert.deepEqual(await raw.call(topic, "broadcast", { type: "broadcast", event: "x", payload: {} }), { status: "ok", response: {} })
  })

  test("12. REST: batch and single endpoints with query retained, percent-encoded names, 202, CORS preflight", async () => {
    const room = `${fresh()}/é`
    const raw = await openArrays(a, PATH)
    await raw.call(`realtime:${room}`, "phx_join", {})
    const elsewhere = supabaseClient(b).channel(room)
    assert.deepEqual(await elsewhere.httpSend("ev/1", { by: "http" }), { success: true })
    const single = await raw.find(([, , , event, payload]) => event === "broadcast" && payload.event === "ev/1", "the single one")
    assert.deepEqual(single[4].payload, { by: "http" })
    const post = (target, body, headers = { "content-type": "application/json" }) => b.request("POST", target, { body: typeof body === "string" ? body : JSON.stringify(body), headers })
    const base = "/realtime/v1/api/broadcast?apikey=x&vsn=2.0.0"
    const messages = [1, 2].map((n) => ({ topic: room, event: "batch", payload: { n }, private: false }))
    const answer = await post(base, { messages })
    assert.deepEqual([answer.status, answer.text ?? answer.body ?? ""].map(String), ["202", ""])
    await raw.find(([, , , event, payload]) => event === "broadcast" && payload.payload?.n === 2, "the batch")
    const name = `/realtime/v1/api/broadcast/${encodeURIComponent(room)}/events/bytes?apikey=x`
    assert.equal((await post(name, "\x01\x02", { "content-type": "application/octet-stream" })).status, 202)
    await until(() => raw.bytes.length === 1, "raw bytes")
    for (const bad of ["{", {}, { messages: [{ topic: "", event: "x", payload: {} }] }, { messages: [{ topic: "a", event: "", payload: {} }] }, { messages: [{ topic: "pusher:7:x", event: "x", payload: {} }] }]) {
      assert.equal((await post(base, bad)).status, 422, JSON.stringify(bad))
    }
    assert.equal((await post(base, { messages: [{ topic: "a", event: "x", payload: { x: "x".repeat(70_000) } }] })).status, 413)
    assert.equal((await closed.request("POST", base, { body: "{}" })).status, 401)
    const preflight = await b.request("OPTIONS", base, {
      headers: { origin: "http://elsewhere.test", "access-control-request-method": "POST", "access-control-request-headers": "apikey,authorization,content-type,x-client-info" },
    })
    assert.equal(preflight.status, 200)
    for (const header of ["apikey", "authorization", "content-type", "x-client-info"]) assert.match(preflight.headers["access-control-allow-headers"].toLowerCase(), new RegExp(header))
  })

  test("13. Empty key: distinct UUID per join. postgres_changes bindings: deterministic failure, not a hang", async () => {
    const topic = `realtime:${fresh()}`
    const raw = await openArrays(node, PATH)
    const keys = new Set()
    for (const ref of ["1", "2"]) {
      await raw.call(topic, "phx_join", on(""), ref)
      await raw.call(topic, "presence", track({ ref }), ref)
      await until(() => diffs(raw).some(({ joins }) => Object.values(joins).some(({ metas }) => metas[0].ref === ref)), "in")
      const [key] = Object.entries(diffs(raw).at(-1).joins)[0]
      assert.match(key, /^[0-9a-f]{8}-[0-9a-f]{4}-4/)
      keys.add(key)
    }
    assert.equal(keys.size, 2)
    const channel = supabaseClient(node).channel(fresh())
    channel.on("postgres_changes", { event: "*", schema: "public", table: "t" }, () => {})
    const [status, error] = await new Promise((resolve) => channel.subscribe((...told) => resolve(told)))
    assert.equal(status, "CHANNEL_ERROR")
    assert.match(error.message, /postgres_changes/)
  })

  test("14. phx_close with foreign ref ignored; with join ref closes", async () => {
    const room = fresh()
    const ada = supabaseClient(node)
    const statuses = []
    const channel = ada.channel(room)
    channel.subscribe((status) => statuses.push(status))
    await until(() => statuses.includes("SUBSCRIBED"), "in")
    // A second join of the topic on one socket closes the first one, by its own ref.
    const raw = await openArrays(node, PATH)
    await raw.call(`realtime:${room}`, "phx_join", {}, "1")
    await raw.call(`realtime:${room}`, "phx_join", {}, "2")
    const closes = raw.told.filter(([, , , event]) => event === "phx_close").map(([join, ref]) => [join, ref])
    assert.deepEqual(closes, [["1", "1"]])
    assert.equal((await raw.call(`realtime:${room}`, "presence", track({}), "2")).status, "ok")
    assert.deepEqual(statuses, ["SUBSCRIBED"])
  })

  test("15. Removing a channel and re-adding the same topic at once keeps one member", async () => {
    const room = fresh()
    const watcher = await join("supabase", node, room, "watcher")
    const client = supabaseClient(node)
    const enter = () => {
      const channel = client.channel(room, { config: { presence: { key: "ada" } } })
      channel.on("presence", { event: "sync" }, () => {})
      channel.subscribe((status) => status === "SUBSCRIBED" && channel.track({ at: Date.now() }))
      return channel
    }
    for (let n = 0, channel = enter(); n < 5; n++) {
      await until(() => "ada" in channel.presenceState(), "in", 4000, () => channel.presenceState())
      client.removeChannel(channel)
      channel = enter()
    }
    await until(() => watcher.metas("ada").length === 1, "one member", 4000, () => watcher.metas("ada"))
    await holds(() => watcher.metas("ada").length === 1 && watcher.sees("ada", "watcher"), "and no other", 1500)
  })

  test("private channels need a session or a token; a token in the join will do", async () => {
    const key = jwt({ role: "anon", exp: soon(600) })
    const raw = await openArrays(closed, `/realtime/v1/websocket?apikey=${key}&vsn=2.0.0`)
    const topic = `realtime:${fresh()}`
    const refused = await raw.call(topic, "phx_join", on("ada", { private: true }))
    assert.equal(refused.response.reason, `Unauthorized: You do not have permissions to read from this Channel topic: ${topic.slice(9)}`)
    const token = jwt({ sub: "ada-1", role: "authenticated", exp: soon(600) })
    assert.equal((await raw.call(topic, "phx_join", { ...on("ada", { private: true }), access_token: token }, "2")).status, "ok")
    await raw.call(topic, "presence", track({}), "2")
    await until(() => diffs(raw).some(({ joins }) => "ada-1" in joins), "as the token's user, whatever the key")
    // The same topic without a proof is another channel: nobody is seen there, and nothing heard.
    const stranger = await openArrays(closed, `/realtime/v1/websocket?apikey=${key}&vsn=2.0.0`)
    assert.equal((await stranger.call(topic, "phx_join", on("eve", { private: false }))).status, "ok")
    const authorized = { Authorization: `Bearer ${token}`, apikey: key }
    const say = (isPrivate, n, headers) => closed.post("/realtime/v1/api/broadcast", { messages: [{ topic: topic.slice(9), event: "wave", payload: { n }, private: isPrivate }] }, headers)
    assert.equal((await say(true, 0, { apikey: key, Authorization: `Bearer ${key}` })).status, 401)
    for (const [isPrivate, n] of [[true, 1], [false, 2]]) assert.equal((await say(isPrivate, n, authorized)).status, 202)
    const heard = (who) => who.told.filter(([, , , event]) => event === "broadcast").map((message) => message[4].payload.n)
    await until(() => same([heard(raw), heard(stranger)], [[1], [2]]), "each hears its own", 3000, () => [heard(raw), heard(stranger)])
    await until(() => states(stranger).length === 1, "the roster of the other channel")
    assert.deepEqual([states(stranger), diffs(stranger)], [[{}], []])
    // On one socket a topic is one or the other.
    assert.equal((await raw.call(topic, "phx_join", on("ada"), "7")).status, "ok")
    assert.equal((await closed.get(`/v1/channels/${encodeURIComponent(`realtime-private:${topic.slice(9)}`)}/presence`, authorized)).status, 403)
    await until(async () => (await say(true, 3, authorized), await say(false, 4, authorized), heard(raw).includes(4)), "the later join counts")
    assert(!heard(raw).includes(3))
    const wrong = await raw.call(topic, "phx_join", { ...on("x"), access_token: jwt({ sub: "eve", exp: soon(600) }) }, "3")
    assert.deepEqual([wrong.status, wrong.response.reason], ["error", "the token is that of another user than before"])
  })
})
