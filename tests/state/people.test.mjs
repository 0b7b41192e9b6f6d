// What is known of users and channels over time: status, statistics, places. On two nodes with Redis, and on one alone.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { closeAll, connectRaw, counted, fresh, joinAs } from "../phoenix/client.mjs"
import { startRedis } from "../phoenix/redis.mjs"
import { holds, startNode, until } from "../phoenix/server.mjs"

const enc = encodeURIComponent
const IDLE_MS = 2000
const SETTINGS = { ROLLCALL_IDLE_SECONDS: "2", ROLLCALL_GRACE_SECONDS: "0", ROLLCALL_PRESENCE_TTL_SECONDS: "6" }

/** Everything that holds with Redis and without: `nodes()` are the nodes, perhaps twice the same. */
function suite(nodes) {
  const statusOf = async (user, at = 1) => (await nodes()[at].get(`/v1/users/${enc(user)}/status`)).json
  const becomes = (user, status, ms = 3000) =>
    until(async () => (await statusOf(user)).status === status, `${user} is ${status}`, ms, () => statusOf(user))
  const stats = async (room, at = 1) => (await nodes()[at].get(`/v1/channels/${enc(room)}/stats`)).json

  test("a user is online, idle when all connections are, offline; seen first and last", async () => {
    const [room, ada] = [fresh(), fresh("ada")]
    assert.deepEqual(await statusOf(ada), { user: ada, status: "offline", last_seen: null, first_seen: null })
    const begun = Date.now()
    const phone = await connectRaw(nodes()[0])
    assert.equal((await phone.join(room, { user_id: ada })).status, "ok")
    await becomes(ada, "online")
    const { first_seen } = await statusOf(ada)
    assert.ok(Math.abs(Date.parse(first_seen) - begun) < 2000, first_seen)
    // Heartbeats are no activity.
    const beating = setInterval(() => phone.heartbeat(), 300)
    await becomes(ada, "idle", 2 * IDLE_MS + 2500)
    const laptop = await connectRaw(nodes()[1])
    await laptop.join(room, { user_id: ada })
    await becomes(ada, "online")
    // The phone says that it is in use; the laptop that it is not.
    const of = (raw, event) => raw.call(room, "presence", { type: "presence", event }, raw.joined)
    await of(laptop, "idle")
    await becomes(ada, "idle")
    await of(phone, "active")
    await becomes(ada, "online")
    clearInterval(beating)
    // Who only watches under a user's name, or has left, is no sign of that user.
    await becomes(ada, "idle", 2 * IDLE_MS + 2500)
    const watcher = await connectRaw(nodes()[1])
    await watcher.join(room, { user_id: ada, observe: true })
    await watcher.call(room, "wave", {})
    await holds(async () => (await statusOf(ada)).status === "idle", "it stays idle", 1500)
    await of(phone, "active")
    await becomes(ada, "online")
    await phone.call(room, "presence", { type: "presence", event: "untrack" })
    await becomes(ada, "idle")
    for (const raw of [phone, laptop, watcher]) raw.close()
    await becomes(ada, "offline")
    const last = await statusOf(ada)
    assert.equal(last.first_seen, first_seen)
    assert.ok(Math.abs(Date.parse(last.last_seen) - Date.now()) < 3000, last.last_seen)
  })

  test("a thousand users at once, in their order, in a moment", async () => {
    const [room, here, away] = [fresh(), fresh("here"), fresh("away")]
    await joinAs(nodes()[0], room, here)
    await becomes(here, "online")
    const users = Array.from({ length: 1000 }, (_, i) => (i === 500 ? here : `${away}-${i}`))
    const began = performance.now()
    const { status, json } = await nodes()[1].post("/v1/users/status", { users })
    const took = performance.now() - began
    assert.equal(status, 200)
    assert.deepEqual(json.statuses.map((one) => one.user), users)
    assert.deepEqual([...new Set(json.statuses.map((one) => one.status))].sort(), ["offline", "online"])
    assert.equal(json.statuses[500].status, "online")
    assert.ok(took < 500, `${took} ms`)
    for (const wrong of [{ users: [...users, "one more"] }, { users: [""] }, { users: ["__proto__"] }, { users: "ada" }, {}]) {
      assert.equal((await nodes()[1].post("/v1/users/status", wrong)).status, 400)
    }
    await closeAll()
  })

  test("uniques, peak, joins and leaves of a channel, each counted once", async () => {
    const room = fresh()
    const none = { uniques: 0, peak: 0, joins: 0, leaves: 0 }
    assert.deepEqual(await stats(room), { channel: room, day: none, week: none })
    const members = []
    for (let i = 0; i < 6; i++) members.push(await joinAs(nodes()[i % 2], room, `u${i % 4}`))
    await counted(nodes()[0], room, 4, 6)
    await counted(nodes()[1], room, 4, 6)
    // An update is neither a join nor a leave.
    members[0].channel.push("presence", { type: "presence", event: "track", payload: { name: "new" } })
    for (const member of members.slice(0, 3)) member.channel.leave()
    await counted(nodes()[0], room, 3, 3)
    const expected = { uniques: 4, peak: 4, joins: 6, leaves: 3 }
    await until(
      async () => JSON.stringify((await stats(room)).day) === JSON.stringify(expected),
      "all is counted",
      4000,
      () => stats(room),
    )
    assert.deepEqual(await stats(room, 0), { channel: room, day: expected, week: expected })
    await closeAll()
  })

  test("members nearby, the nearest first; who moved or left is not there", async () => {
    const room = fresh()
    const at = (lat, lon) => ({ location: { lat, lon } })
    const berlin = await joinAs(nodes()[0], room, "berlin", { meta: at(52.52, 13.405) })
    await joinAs(nodes()[1], room, "potsdam", { meta: at(52.3906, 13.0645) })
    await joinAs(nodes()[0], room, "paris", { meta: at(48.8566, 2.3522) })
    await joinAs(nodes()[0], room, "nowhere", { meta: { location: "secret" } })
    await joinAs(nodes()[1], room, "fiji", { meta: at(-17.7, 179.99) })
    await joinAs(nodes()[0], room, "samoa", { meta: at(-17.7, -179.99) })
    await joinAs(nodes()[1], room, "pole", { meta: at(89.99, 100) })
    await counted(nodes()[0], room, 7)
    const ask = (lat, lon, radius, more = "", node = 1) =>
      nodes()[node].get(`/v1/channels/${enc(room)}/presence/nearby?lat=${lat}&lon=${lon}&radius_m=${radius}${more}`)
    const who = async (...circle) => (await ask(...circle)).json.members.map((one) => one.user)
    const sees = (expected, ...circle) =>
      until(async () => (await who(...circle)).join() === expected.join(), `${expected}`, 3000, () => who(...circle))
    await sees(["berlin", "potsdam"], 52.5, 13.4, 50_000)
    const { json } = await ask(52.5, 13.4, 50_000)
    assert.equal(json.channel, room)
    const [first] = json.members
    assert.deepEqual(Object.keys(first), ["user", "distance_m", "location"])
    assert.deepEqual(first.location, { lat: 52.52, lon: 13.405 })
    // By the haversine formula: 2.25 km.
    assert.ok(Math.abs(first.distance_m - 2250) < 20, first.distance_m)
    await sees(["berlin"], 52.5, 13.4, 50_000, "&limit=1")
    await sees(["berlin", "potsdam", "paris"], 52.5, 13.4, 1_000_000)
    await sees([], 0, 0, 100_000)
    // Where longitudes begin again, and at the pole.
    await sees(["fiji", "samoa"], -17.7, 179.995, 5_000)
    await sees(["pole"], 90, -80, 5_000)
    // Two tabs are one member, at the nearer place.
    const tab = await joinAs(nodes()[1], room, "berlin", { meta: at(52.51, 13.4) })
    await counted(nodes()[1], room, 7, 8)
    await until(async () => (await ask(52.5, 13.4, 50_000)).json.members[0].distance_m < 1200, "the tab is nearer", 3000)
    assert.deepEqual(await who(52.5, 13.4, 50_000), ["berlin", "potsdam"])
    tab.channel.leave()
    berlin.channel.push("presence", { type: "presence", event: "track", payload: at(48.86, 2.35) })
    await sees(["potsdam"], 52.5, 13.4, 50_000)
    await sees(["paris", "berlin"], 48.8566, 2.3522, 10_000)
    berlin.channel.leave()
    await sees(["paris"], 48.8566, 2.3522, 10_000)
    for (const wrong of [[91, 0, 1], [0, 181, 1], [0, 0, -1], [0, 0, 3e7], ["x", 0, 1], [0, 0, "NaN"], [0, 0, 1, "&limit=0"]]) {
      assert.equal((await ask(...wrong)).status, 400, wrong.join())
    }
    assert.equal((await nodes()[0].get(`/v1/channels/${enc(room)}/presence/nearby?lat=1`)).status, 400)
    await closeAll()
  })
}

describe("on two nodes with Redis", () => {
  let redis
  const nodes = []
  before(async () => {
    redis = await startRedis()
    for (let i = 0; i < 2; i++) nodes.push(await startNode({ ...SETTINGS, REDIS_URL: redis.url }))
  })
  after(async () => {
    await Promise.all(nodes.map((node) => node.stop()))
    await redis?.stop()
  })
  suite(() => nodes)

  test("what stands in Redis has an end, and a killed node's places and activity go", async () => {
    const [room, eve] = [fresh(), fresh("eve")]
    const doomed = await startNode({ ...SETTINGS, REDIS_URL: redis.url })
    await joinAs(doomed, room, eve, { meta: { location: { lat: 1, lon: 2 } } })
    await joinAs(nodes[0], room, "stays", { meta: { location: { lat: 1, lon: 2 } } })
    await counted(nodes[0], room, 2)
    const near = async () =>
      (await nodes[1].get(`/v1/channels/${enc(room)}/presence/nearby?lat=1&lon=2&radius_m=10`)).json.members
    await until(async () => (await near()).length === 2, "both are found", 3000, near)
    const day = new Date().toISOString().slice(0, 10)
    const name = room.replace(":", "%3A")
    const key = `presence:channel:${name}`
    await until(async () => (await redis.keys(`cache:uniques:${name}:${day}`)).length === 1, "users are counted", 3000)
    for (const one of await redis.keys("*")) {
      const ttl = await redis.call("PTTL", one)
      const hasNone = one.startsWith("cache:session:filter")
      assert.ok(ttl === -2 || hasNone || ttl > 0, one)
      if (one.startsWith("presence:") && !one.endsWith("last_seen")) assert.ok(ttl <= 6000, one)
    }
    await doomed.stop("SIGKILL")
    await until(async () => (await near()).map((one) => one.user).join() === "stays", "the killed are not", 15_000, near)
    await until(async () => (await redis.call("ZCARD", `${key}:places`)) === 1, "nor in the index", 15_000)
    const leaves = async () => (await nodes[0].get(`/v1/channels/${enc(room)}/stats`)).json.day.leaves
    await until(async () => (await leaves()) === 1, "its leave is counted by who cleaned up", 5000)
    assert.equal((await nodes[1].get(`/v1/users/${enc(eve)}/status`)).json.status, "offline")
    // FLUSHALL: places come back with the next heartbeat.
    await redis.call("FLUSHALL")
    await until(async () => (await near()).length === 1, "the place is written again", 10_000)
    await holds(async () => (await near()).length === 1, "it stays", 300)
    await closeAll()
  })
})

describe("on one node without Redis", () => {
  const nodes = []
  before(async () => nodes.push(await startNode(SETTINGS)))
  after(() => nodes[0]?.stop())
  suite(() => [nodes[0], nodes[0]])
})

describe("switched off", () => {
  test("with ROLLCALL_IDLE_SECONDS=0 nobody is idle", async () => {
    const node = await startNode({ ROLLCALL_IDLE_SECONDS: "0" })
    const room = fresh()
    await joinAs(node, room, "ada")
    await counted(node, room, 1)
    const { json } = await node.post("/v1/users/status", { users: ["ada", "bob"] })
    assert.deepEqual(json.statuses.map((one) => one.status), ["online", "offline"])
    await closeAll()
    await node.stop()
  })
})
