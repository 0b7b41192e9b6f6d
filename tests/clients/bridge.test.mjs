// One room for clients of all dialects: where the protocols differ, and where they are kept apart.

import assert from "node:assert/strict"
import { createHmac } from "node:crypto"
import { after, afterEach, before, describe, test } from "node:test"
import Echo from "laravel-echo"
import { startRedis } from "../phoenix/redis.mjs"
import { holds, startNode, until } from "../phoenix/server.mjs"
import { APP, APPS, KINDS, Pusher, backend, endAll, fresh, join, same, supabaseClient } from "./people.mjs"
import { closeRaw, openArrays, openPusher } from "./raw.mjs"

const PHOENIX = "/socket/websocket?vsn=2.0.0"
const SUPABASE = "/realtime/v1/websocket?apikey=any&vsn=2.0.0"
const settings = { ...APPS, ROLLCALL_GRACE_SECONDS: "1" }
const user = (id, info) => JSON.stringify({ user_id: id, ...(info && { user_info: info }) })
const count = async (node, room) => (await node.get(`/v1/channels/${encodeURIComponent(room)}/presence/count`)).json.online

/** A real Laravel Echo, whose users are signed by the application's library. */
function echo(node, id, info) {
  const signer = backend(node)
  const client = new Echo({
    broadcaster: "reverb",
    Pusher,
    key: APP.key,
    wsHost: "127.0.0.1",
    wsPort: node.port,
    forceTLS: false,
    enabledTransports: ["ws"],
    authorizer: ({ name }) => ({
      authorize: (socketId, done) => done(null, signer.authorizeChannel(socketId, name, { user_id: id, user_info: info })),
    }),
  })
  return client
}

describe("one room", () => {
  let redis, a, b
  const echoes = []
  before(async () => {
    redis = await startRedis()
    ;[a, b] = await Promise.all([1, 2].map(() => startNode({ ...settings, REDIS_URL: redis.url })))
  })
  afterEach(async () => {
    echoes.splice(0).forEach((client) => client.disconnect())
    closeRaw()
    await endAll()
  })
  after(async () => {
    await Promise.all([a?.stop(), b?.stop()])
    await redis?.stop()
  })

  test("Laravel Echo: here, joining, leaving and whispers, with everybody else on another node", async () => {
    const room = fresh()
    const others = []
    for (const kind of KINDS) others.push(await join(kind, b, room, `early-${kind}`, { name: `early ${kind}` }))
    const ada = echo(a, "ada", { name: "Ada" })
    echoes.push(ada)
    const [seen, heard] = [[], []]
    let here
    const channel = ada.join(room)
    channel.here((people) => (here = people.map(({ name }) => name).sort()))
    channel.joining(({ name }) => seen.push(`+${name}`)).leaving(({ name }) => seen.push(`-${name}`))
    channel.listenForWhisper("wave", (payload) => heard.push(payload))
    await until(() => here, "it is told who is here")
    assert.deepEqual(here, ["Ada", "early phoenix", "early pusher", "early supabase"])
    for (const one of others) await until(() => one.users().includes("ada"), `${one.kind} sees Ada`, 3000, one.users)

    for (const [at, kind] of KINDS.entries()) {
      const late = await join(kind, [a, b][at % 2], room, `late-${kind}`, { name: `late ${kind}` })
      await until(() => seen.at(-1) === `+late ${kind}`, `sees ${kind} come`, 3000, () => seen)
      await late.leave()
      await until(() => seen.at(-1) === `-late ${kind}`, `sees ${kind} go`, 3000, () => seen)
    }
    assert.equal(seen.length, 2 * KINDS.length)
    channel.whisper("wave", { from: "ada" })
    for (const one of others) await until(() => one.waves.some((wave) => same(wave, { from: "ada" })), `${one.kind} hears the whisper`)
    for (const one of others) {
      await one.wave({ from: one.kind })
      await until(() => heard.some((wave) => same(wave, { from: one.kind })), `Echo hears ${one.kind}`, 3000, () => heard)
    }
    ada.leave(room)
    for (const one of others) await until(() => !one.users().includes("ada"), `${one.kind} sees Ada go`, 3000, one.users)
  })

  test("what a user came with is what Pusher's clients see until the user is gone; the others see every update", async () => {
    const room = fresh()
    const ada = await join("phoenix", a, room, "ada", { v: 1 })
    const early = await join("pusher", b, room, "early")
    await until(() => early.sees("ada", "early"), "Ada is there")
    await ada.update({ v: 2 })
    const [supabase, late] = [await join("supabase", b, room, "sue"), await join("pusher", a, room, "late")]
    await until(() => same(supabase.metas("ada"), [{ v: 2 }]), "the new one", 3000, () => supabase.metas("ada"))
    assert.deepEqual([early.metas("ada"), late.metas("ada")], [[{ v: 1 }], [{ v: 1 }]], "and the one that she came with")
    // Her second connection stays, the first goes: still the same user.
    const second = await join("supabase", b, room, "ada", { v: 3 })
    await until(() => supabase.metas("ada").length === 2, "two connections")
    await ada.leave()
    await until(() => same(supabase.metas("ada"), [{ v: 3 }]), "one connection")
    const later = await join("pusher", a, room, "later")
    assert.deepEqual(later.metas("ada"), [{ v: 1 }])
    await second.leave()
    await until(() => !later.users().includes("ada"), "gone")
    const back = await join("phoenix", b, room, "ada", { v: 4 })
    await until(() => same(later.metas("ada"), [{ v: 4 }]), "back with another", 3000, () => later.metas("ada"))
    assert.deepEqual(back.metas("ada"), [{ v: 4 }])
  })

  test("backends speak to everybody, through either HTTP API", async () => {
    const room = fresh()
    const people = []
    for (const [at, kind] of KINDS.entries()) people.push(await join(kind, [a, b][at % 2], room, kind))
    const byApp = await openPusher(a)
    await byApp.join(`presence-${room}`, user("raw"))
    assert.equal((await backend(b).trigger(`presence-${room}`, "wave", { n: 1 })).status, 200)
    for (const one of people.slice(0, 2)) await until(() => one.waves.some((wave) => same(wave, { n: 1 })), `${one.kind} hears the application`)
    const plain = await byApp.find(({ event }) => event === "wave", "the application's clients hear the event by its own name")
    assert.deepEqual(JSON.parse(plain.data), { n: 1 })
    const client = supabaseClient(b)
    await client.channel(room).httpSend("wave", { n: 2 })
    for (const one of people) await until(() => one.waves.some((wave) => same(wave, { n: 2 })), `${one.kind} hears Supabase's call`, 3000, () => one.waves)
    assert.deepEqual(people.map((one) => one.waves.length), [2, 2, 1], "the application's own event is not one of a client")
  })

  test("bytes stay among the clients that know them", async () => {
    const room = fresh()
    const pusher = await join("pusher", a, room, "paul")
    const sue = await join("supabase", b, room, "sue")
    const sam = await join("supabase", a, room, "sam")
    await sue.wave(new Uint8Array([1, 2, 250]).buffer)
    await sue.wave({ n: 1 })
    await until(() => sam.waves.length === 2 && same(sam.waves[1], { n: 1 }), "both come to Supabase's client", 3000, () => sam.waves)
    assert.deepEqual([...new Uint8Array(sam.waves[0])], [1, 2, 250])
    await until(() => pusher.waves.length > 0, "Pusher's client hears one")
    assert.deepEqual(pusher.waves, [{ n: 1 }])
  })

  test("names that a dialect cannot say are refused with a reason, and work for the others", async () => {
    const pusher = await openPusher(a)
    for (const name of ["presence-raum größe", "presence-a/b", "presence-", "presence-pusher:7:x", "presence-phoenix", `presence-${"x".repeat(300)}`]) {
      pusher.subscribe(name, user("ada"))
      const refusal = await pusher.find(({ event, channel }) => event === "pusher:subscription_error" && channel === name, `${name.slice(0, 30)} is refused`)
      assert.match(JSON.stringify(refusal.data), /channel/i, name)
    }
    await pusher.join("presence-fine", user("ada"))
    const [phoenix, supabase] = [await openArrays(a, PHOENIX), await openArrays(b, SUPABASE)]
    for (const name of [`pusher:${APP.id}:private-x`, "pusher:anything"]) {
      const answers = [await phoenix.call(name, "phx_join", { user_id: "x" }, "1"), await supabase.call(`realtime:${name}`, "phx_join", { config: {} }, "1")]
      for (const answer of answers) assert.equal(answer.status, "error", JSON.stringify(answer))
    }
    const odd = "raum größe/1"
    assert.equal((await phoenix.call(odd, "phx_join", { user_id: "x" }, "2")).status, "ok")
    assert.equal((await supabase.call(`realtime:${odd}`, "phx_join", { config: { presence: { key: "y", enabled: true } } }, "2")).status, "ok")
    assert.equal((await supabase.call(`realtime:${odd}`, "presence", { type: "presence", event: "track", payload: {} }, "2")).status, "ok")
    await until(() => phoenix.told.some(([, , topic, event, payload]) => topic === odd && event === "presence_diff" && "y" in payload.joins), "they meet there")
  })
})

describe("kept apart", () => {
  let node
  before(async () => (node = await startNode({ ...settings, ROLLCALL_BRIDGE: "off", SERVICE_KEY: "a service key for tests" })))
  afterEach(async () => {
    closeRaw()
    await endAll()
  })
  after(() => node?.stop())

  test("with ROLLCALL_BRIDGE=off signed users and self-asserted ones do not meet", async () => {
    const room = fresh()
    const people = {}
    for (const kind of KINDS) people[kind] = await join(kind, node, room, kind)
    const isApart = () => people.phoenix.sees("phoenix", "supabase") && people.supabase.sees("phoenix", "supabase") && people.pusher.sees("pusher")
    await until(isApart, "two rooms")
    await people.phoenix.wave({ n: 1 })
    await people.pusher.wave({ n: 2 })
    await until(() => people.supabase.waves.length === 1, "Phoenix's wave comes to Supabase's client")
    await holds(() => people.pusher.waves.length === 0 && people.phoenix.waves.length === 0 && isApart(), "and none crosses", 500)
    assert.equal(await count(node, room), 2)
    const apart = `pusher:${APP.id}:presence-${room}`
    const asOperator = { Authorization: "Bearer a service key for tests" }
    for (const what of ["presence/count", "presence", "presence/events", "stats", "presence/nearby?lat=1&lon=1&radius_m=1"]) {
      assert.equal((await node.get(`/v1/channels/${encodeURIComponent(apart)}/${what}`)).status, 403, `${what} is not for strangers`)
    }
    assert.equal((await node.post("/v1/presence/counts", { channels: [room, apart] })).status, 403)
    const listed = async (headers) => (await node.get("/v1/channels?prefix=pusher:", headers)).json.channels.map(({ channel }) => channel)
    assert.deepEqual([await listed(), await listed(asOperator)], [[], [apart]])
    const places = async (headers) => (await node.get("/v1/users/pusher/presence", headers)).json.channels
    assert.deepEqual([await places(), await places(asOperator)], [[], [apart]])
    assert.equal((await node.get(`/v1/channels/${encodeURIComponent(apart)}/presence/count`, asOperator)).json.online, 1, "operators see both")
    const { status, body } = await backend(node).get({ path: `/channels/presence-${room}/users` }).then(async (answer) => ({ status: answer.status, body: await answer.json() }))
    assert.deepEqual([status, body], [200, { users: [{ id: "pusher" }] }])
  })

  test("bridged where users need a proof, nobody takes the name of another", async () => {
    const strict = await startNode({ ...settings, ROLLCALL_BRIDGE: "on", ROLLCALL_AUTH: "session", JWT_SECRET: "a secret of at least sixteen bytes", ROLLCALL_ANONYMOUS: "on" })
    try {
      const room = fresh()
      const boss = await join("pusher", strict, room, "boss")
      const [head, body] = [{ alg: "HS256", typ: "JWT" }, { role: "anon" }].map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"))
      const anon = `${head}.${body}.${createHmac("sha256", "a secret of at least sixteen bytes").update(`${head}.${body}`).digest("base64url")}`
      const stranger = await openArrays(strict, `/realtime/v1/websocket?apikey=${anon}&vsn=2.0.0`)
      const topic = `realtime:${room}`
      const refused = await stranger.call(topic, "phx_join", { config: { presence: { key: "boss", enabled: true } } }, "1")
      assert.equal(refused.status, "error")
      assert.match(refused.response.reason, /name needs a session/)
      assert.equal((await stranger.call(topic, "phx_join", { config: { presence: { key: "", enabled: true } } }, "2")).status, "ok")
      stranger.say(["2", "9", topic, "broadcast", { type: "broadcast", event: "wave", payload: { n: 1 } }])
      await until(() => boss.waves.length === 1, "who has no name may speak, and under no name")
      assert.deepEqual(boss.users(), ["boss"])
    } finally {
      await endAll()
      await strict.stop()
    }
  })

  test("and so it is unless it is asked for, where users need a proof", async () => {
    const strict = await startNode({ ...settings, ROLLCALL_AUTH: "session", JWT_SECRET: "a secret of at least sixteen bytes", ROLLCALL_ANONYMOUS: "on" })
    try {
      const room = fresh()
      const paul = await join("pusher", strict, room, "paul")
      const answer = await fetch(`${strict.url}/auth/v1/signup`, { method: "POST", headers: { "content-type": "application/json" }, body: "{}" })
      const { access_token, user: { id } } = await answer.json()
      const phoenix = await openArrays(strict, `${PHOENIX}&token=${access_token}`)
      assert.equal((await phoenix.call(room, "phx_join", {}, "1")).status, "ok")
      // In the roster or in the diff after it: never with anybody else.
      const told = () => phoenix.told.filter(([, , topic, event]) => topic === room && event.startsWith("presence_")).flatMap((message) => Object.keys(message[4].joins ?? message[4]))
      await until(() => same(told(), [id]), "it is told of itself alone", 3000, told)
      await holds(() => paul.sees("paul"), "Paul is alone", 300)
    } finally {
      await endAll()
      await strict.stop()
    }
  })
})
