// A Redis Cluster of six nodes, and what users see when slots move and nodes die.

import assert from "node:assert/strict"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, connectRaw, counted, fresh, holds, joinAs, same, until } from "../phoenix/client.mjs"
import { startNode } from "../phoenix/server.mjs"
import { enc, healthy, observers, seen, undisturbed } from "./common.mjs"
import { cluster } from "./servers.mjs"

const SERVICE = "a service key for tests"
const LEASE = 5_000
/** From the moment a primary dies until nodes hear each other again. */
const BOUND = 15_000

const usersKey = (room) => `presence:channel:{${enc(room)}}:users`
const userKey = (room, user) => `presence:channel:{${enc(room)}}:user:${enc(user)}`

describe("a cluster of three primaries with a replica each", () => {
  let redis, a, b
  before(async () => {
    redis = await cluster()
    const env = { REDIS_URL: redis.url, SERVICE_KEY: SERVICE, ROLLCALL_NODE_TTL_SECONDS: String(LEASE / 1000) }
    ;[a, b] = await Promise.all([startNode(env), startNode(env)])
    for (const node of [a, b]) await healthy(node)
  })
  after(async () => {
    await Promise.all([a?.stop("SIGKILL"), b?.stop("SIGKILL")])
    await redis?.stop()
  })
  afterEach(closeAll)

  test("channels of all slots are shared, counted and listed", async () => {
    const prefix = fresh("many")
    const rooms = Array.from({ length: 60 }, (_, i) => `${prefix}/${i}`)
    await Promise.all(rooms.flatMap((room) => [joinAs(a, room, "ada"), joinAs(b, room, "bo {x}")]))
    for (const node of [a, b]) await Promise.all(rooms.map((room) => counted(node, room, 2)))
    // Each connection's key is on another server than its node's lease.
    const { json: why } = await a.get("/v1/users/ada/presence?explain=true", { Authorization: `Bearer ${SERVICE}` })
    const told = why.explain.filter((one) => rooms.includes(one.channel))
    assert.deepEqual([told.length, told.every((one) => one.last_heartbeat && one.lease_left_ms > 0)], [60, true])
    const owners = new Set()
    for (const room of rooms) {
      owners.add((await redis.owner(usersKey(room))).id)
      await until(async () => same((await redis.ask("SMEMBERS", usersKey(room))).sort(), ["ada", "bo {x}"]), "the set of users")
      assert.equal(await redis.ask("HLEN", userKey(room, "bo {x}")), 1)
    }
    assert.equal(owners.size, 3, "on every primary")
    // A third node knows nothing of its own: all it says comes from Redis.
    const c = await startNode({ REDIS_URL: redis.url })
    try {
      await healthy(c)
      const { json: bulk } = await c.post("/v1/presence/counts", { channels: rooms })
      assert.deepEqual(bulk.counts.map(({ channel, online, connections }) => [channel, online, connections]), rooms.map((room) => [room, 2, 2]))
      const { json: list } = await c.get(`/v1/channels?prefix=${encodeURIComponent(prefix)}&limit=100`)
      assert.deepEqual(list.channels.map(({ channel }) => channel).sort(), [...rooms].sort())
      const { json: ada } = await c.get("/v1/users/ada/presence")
      assert.deepEqual(rooms.filter((room) => !ada.channels.includes(room)), [])
      const { json: members } = await c.get(`/v1/channels/${encodeURIComponent(rooms[0])}/presence`)
      assert.deepEqual(members.members.map(({ user }) => user).sort(), ["ada", "bo {x}"])
    } finally {
      const { code } = await c.stop()
      assert.equal(code, 0)
    }
  })

  test("sessions, their end on every node, and rate limits", async () => {
    const key = { Authorization: `Bearer ${SERVICE}` }
    const { status, json } = await a.post("/v1/sessions", { user_id: "ada" }, key)
    assert.equal(status, 201)
    const bearer = { Authorization: `Bearer ${json.access_token}` }
    assert.equal((await b.get("/auth/v1/user", bearer)).json.user?.id ?? (await b.get("/auth/v1/user", bearer)).json.id, "ada")
    const socket = await connectRaw(b, { query: { vsn: "2.0.0", token: json.access_token } })
    assert.equal((await a.request("DELETE", `/v1/sessions/${json.access_token}`, { headers: key })).status, 204)
    await socket.end(3000)
    assert.equal((await b.get("/auth/v1/user", bearer)).status, 401)

    const env = { REDIS_URL: redis.url, ROLLCALL_RATE_IP: "5" }
    const strict = await Promise.all([startNode(env), startNode(env)])
    try {
      for (const node of strict) await healthy(node)
      const answers = []
      for (let i = 0; i < 12; i++) answers.push((await strict[i % 2].get("/v1/channels/x/presence/count")).status)
      assert.equal(answers.filter((status) => status === 200).length, 5, `counted together: ${answers}`)
      assert.equal(answers.filter((status) => status === 429).length, 7)
    } finally {
      await Promise.all(strict.map((node) => node.stop()))
    }
  })

  test("a node that is killed is cleaned up after, by one of the others", async () => {
    const room = fresh()
    const all = await observers([a, b], room)
    const c = await startNode({ REDIS_URL: redis.url, ROLLCALL_NODE_TTL_SECONDS: String(LEASE / 1000) })
    await joinAs(c, room, "lost")
    await seen(all, ["lost"], 5000)
    const [id] = (await redis.ask("HKEYS", userKey(room, "lost")))[0].split(":")
    await c.stop("SIGKILL")
    for (const me of all) await until(() => me.sees("watcher 0", "watcher 1"), "the dead node's member is gone", 15_000, me.users)
    await until(async () => (await redis.ask("EXISTS", userKey(room, "lost"))) === 0, "its hash is gone", 10_000)
    await until(async () => (await redis.ask("SMEMBERS", "presence:nodes")).length === 2, "and the node is off the list", 10_000)
    // Lock and number are in one slot, and so is all that is counted of a channel.
    const lock = `lock:presence-clean-up-${id}`
    assert.ok(Number(await redis.ask("GET", `cache:fence:{${lock}}`)) > 1e12, "by the holder of the lock")
    await until(async () => (await redis.ask("EXISTS", lock)) === 0, "which is given back")
    const stats = async () => {
      const { day } = (await a.get(`/v1/channels/${encodeURIComponent(room)}/stats`)).json
      return [day.uniques, day.peak, day.leaves]
    }
    // What the dead node counted last may be lost with it; that its member has left is counted by another.
    await until(async () => ["2,3,1", "3,3,1"].includes(String(await stats())), "counted", 12_000, stats)
  })

  test("the slot of an occupied channel moves under churn: nobody who stays is seen to leave", async (t) => {
    const room = fresh()
    const all = await observers([a, b], room)
    const stayers = Array.from({ length: 12 }, (_, i) => `stays ${i}`)
    await Promise.all(stayers.map((user, i) => joinAs(i % 2 ? a : b, room, user)))
    await seen(all, stayers, 5000)
    let churning = true
    let came = 0
    const churn = (async () => {
      while (churning) {
        const me = await joinAs(came % 2 ? a : b, room, `passes ${came++}`)
        me.channel.leave()
        me.close()
      }
    })()
    const moves = []
    for (let i = 0; i < 3; i++) moves.push(await redis.move(usersKey(room)))
    churning = false
    await churn
    t.diagnostic(`${came} joins and leaves while the slot moved: ${JSON.stringify(moves)}`)
    const users = ["watcher 0", "watcher 1", ...stayers]
    for (const me of all) await until(() => me.sees(...users), "those who stay and nobody else", 25_000, me.users)
    await until(async () => same((await redis.ask("SMEMBERS", usersKey(room))).sort(), [...users].sort()), "Redis agrees", 25_000, () => redis.ask("SMEMBERS", usersKey(room)))
    for (const node of [a, b]) await counted(node, room, users.length)
    undisturbed(all, users)
    // And changes go on being heard.
    await joinAs(b, room, "later")
    await seen(all, ["later"], 5000)
  })

  test("the node at which others are heard is killed: they are heard at another", async (t) => {
    const room = fresh()
    const all = await observers([a, b], room)
    const users = ["watcher 0", "watcher 1"]
    const heard = async (node) => (await node.call("CLIENT", "LIST", "TYPE", "pubsub")).trim().split("\n").filter(Boolean).length
    const counts = await Promise.all(redis.nodes.map(heard))
    assert.equal(counts.reduce((sum, n) => sum + n), 2, "one subscription for each node")
    const victim = redis.nodes[counts.findIndex((n) => n > 0)]
    await victim.kill()
    const killed = Date.now()
    await Promise.all([joinAs(a, room, "ada"), joinAs(b, room, "bo")])
    users.push("ada", "bo")
    await seen(all, users, BOUND)
    t.diagnostic(`shared again after ${Date.now() - killed} ms`)
    await redis.whole()
    await victim.start()
    await redis.whole()
    await redis.covered()
    for (const node of [a, b]) await healthy(node)
    undisturbed(all, users)
  })

  test("a primary that hangs is replaced, and is a replica when it comes back", async (t) => {
    await redis.covered()
    const rooms = Array.from({ length: 6 }, () => fresh("spread"))
    const groups = await Promise.all(rooms.map((room) => observers([a, b], room)))
    const users = ["watcher 0", "watcher 1", "during"]
    const { node: victim } = await redis.owner(usersKey(rooms[0]))
    const other = redis.nodes.find((node) => node !== victim)
    victim.freeze()
    const frozen = Date.now()
    try {
      await Promise.all(rooms.map((room) => joinAs(a, room, "during")))
      const replaced = async () => (await redis.view(other)).some(({ port, flags }) => port === victim.port && flags.includes("fail"))
      await until(replaced, "the others give it up", BOUND)
      await Promise.all(groups.map((all) => seen(all, users, BOUND - (Date.now() - frozen))))
      t.diagnostic(`shared again after ${Date.now() - frozen} ms`)
    } finally {
      victim.thaw()
    }
    await redis.whole()
    await until(async () => (await victim.info("INFO", "replication")).role === "slave", "it is a replica now", 10_000)
    await redis.covered()
    for (const node of [a, b]) await healthy(node)
    for (const room of rooms) {
      await until(async () => (await redis.ask("SCARD", usersKey(room))) === 3, "all stand in Redis", 10_000)
    }
    await holds(() => groups.every((all) => all.every((me) => me.sees(...users))), "all stay", 1000)
    for (const all of groups) undisturbed(all, users)
  })

  test("a primary hangs for longer than a lease and is not replaced: nobody is judged", async () => {
    await redis.covered()
    const all = async (ms) => Promise.all(redis.nodes.map((node) => node.call("CONFIG", "SET", "cluster-node-timeout", ms)))
    const rooms = Array.from({ length: 6 }, () => fresh("spread"))
    const groups = await Promise.all(rooms.map((room) => observers([a, b], room)))
    const users = ["watcher 0", "watcher 1"]
    const { node: victim } = await redis.owner(usersKey(rooms[0]))
    await all(30_000)
    victim.freeze()
    try {
      // One node has more to write there than the other.
      await Promise.all(rooms.map((room) => joinAs(a, room, "during")))
      await holds(() => groups.every((group) => group.every((me) => users.every((user) => me.users().includes(user)))), "all stay", LEASE + 3000)
    } finally {
      victim.thaw()
      await all(1500)
    }
    users.push("during")
    await Promise.all(groups.map((group) => seen(group, users, BOUND)))
    for (const node of [a, b]) await healthy(node)
    for (const group of groups) undisturbed(group, users)
  })

  test("a primary is killed and its replica takes over: nobody is seen to leave", async (t) => {
    await redis.covered()
    const rooms = Array.from({ length: 9 }, () => fresh("spread"))
    const groups = await Promise.all(rooms.map((room) => observers([a, b], room)))
    const users = ["watcher 0", "watcher 1"]
    const { node: victim } = await redis.owner(usersKey(rooms[0]))
    await victim.kill()
    const killed = Date.now()
    await Promise.all(rooms.map((room) => joinAs(a, room, "during")))
    users.push("during")
    await until(async () => (await redis.owner(usersKey(rooms[0]))).node !== victim, "the replica takes over", BOUND)
    t.diagnostic(`the replica has taken over after ${Date.now() - killed} ms`)
    await Promise.all(groups.map((all) => seen(all, users, BOUND - (Date.now() - killed))))
    t.diagnostic(`shared again after ${Date.now() - killed} ms`)
    for (const node of [a, b]) await healthy(node)
    for (const room of rooms) {
      await until(async () => (await redis.ask("SCARD", usersKey(room))) === 3, "all stand in Redis", 10_000)
    }
    await holds(() => groups.every((all) => all.every((me) => me.sees(...users))), "all stay", LEASE + 1000)
    for (const all of groups) undisturbed(all, users)

    // It comes back empty, as a replica of the one that replaced it; and then another is restarted, with
    // its replica in step, faster than anybody could take over.
    await victim.start()
    await redis.whole()
    await redis.covered()
    const { node: other } = await redis.owner(usersKey(rooms[0]))
    await other.kill()
    await other.start()
    const restarted = Date.now()
    // Both nodes subscribe anew and read, while what they read is gone.
    for (const node of redis.nodes) await node.call("CLIENT", "KILL", "TYPE", "pubsub")
    await redis.whole()
    await Promise.all(rooms.map((room) => joinAs(b, room, "after")))
    users.push("after")
    await Promise.all(groups.map((all) => seen(all, users, BOUND)))
    t.diagnostic(`after a primary was restarted empty, shared again after ${Date.now() - restarted} ms`)
    for (const room of rooms) {
      await until(async () => (await redis.ask("SCARD", usersKey(room))) === 4, "all stand in Redis", 10_000)
    }
    await holds(() => groups.every((all) => all.every((me) => me.sees(...users))), "all stay", LEASE + 1000)
    for (const all of groups) undisturbed(all, users)
  })
})
