// Two and three real nodes on one real Redis: what they agree on, and what users see when a node or
// Redis goes away.

import assert from "node:assert/strict"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, connectRaw, counted, fresh, holds, joinAs, same, until } from "./client.mjs"
import { startRedis } from "./redis.mjs"
import { startNode } from "./server.mjs"

/** What a node says of itself, with the HTTP status. */
const ready = async (node) => {
  const { status, json } = await node.get("/readyz")
  return { http: status, status: json.status, redis: json.redis, degraded: json.degraded ?? false }
}
const HEALTHY = { http: 200, status: "ready", redis: "up", degraded: false }
const DEGRADED = { http: 200, status: "ready", redis: "down", degraded: true }
const becomes = (node, state, ms = 30_000) =>
  until(async () => same(await ready(node), state), `readyz says ${JSON.stringify(state)}`, ms, () => ready(node))

/** As DESIGN says: these characters are percent-encoded inside keys. */
const enc = (name) => name.replace(/[%:{}\u0000-\u001f\u007f]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`)
const usersKey = (room) => `presence:channel:${enc(room)}:users`
const userKey = (room, user) => `presence:channel:${enc(room)}:user:${enc(user)}`

describe("two nodes on one Redis", () => {
  let redis, a, b
  before(async () => {
    redis = await startRedis()
    ;[a, b] = await Promise.all([startNode({ REDIS_URL: redis.url }), startNode({ REDIS_URL: redis.url })])
  })
  after(async () => {
    await Promise.all([a?.stop(), b?.stop()])
    await redis?.stop()
  })
  afterEach(closeAll)

  test("both are ready and say so", async () => {
    await becomes(a, HEALTHY)
    await becomes(b, HEALTHY)
  })

  test("two tabs of a user on two nodes are one member", async () => {
    const room = fresh()
    const watcher = await joinAs(a, room, "watcher")
    const left = await joinAs(a, room, "ada", { meta: { tab: 1 } })
    const right = await joinAs(b, room, "ada", { meta: { tab: 2 } })
    for (const me of [watcher, left, right]) await until(() => me.refs("ada").length === 2, "two metas", 5000, me.roster)
    for (const node of [a, b]) await counted(node, room, 2, 3)
    left.channel.leave()
    await until(() => same(watcher.roster().ada, [{ tab: 2 }]), "the tab on the other node is left", 5000, watcher.roster)
    assert.deepEqual(watcher.ledger.of("ada"), ["ada came"])
    right.channel.leave()
    await until(() => watcher.sees("watcher"), "gone with the last")
    assert.deepEqual(watcher.ledger.of("ada"), ["ada came", "ada went"])
  })

  test("Redis shows who is online, under the documented keys", async () => {
    await joinAs(a, "room:1", "u1", { meta: { name: "One" } })
    await joinAs(b, "room:1", "u1", { meta: { name: "Two" } })
    await joinAs(b, "room:1", "odd:{user} %é", { meta: {} })
    await until(async () => same((await redis.call("SMEMBERS", "presence:channel:room%3A1:users")).sort(), ["odd:{user} %é", "u1"]), "the set of users")
    const fields = await until(async () => {
      const hash = await redis.hash("presence:channel:room%3A1:user:u1")
      return Object.keys(hash).length === 2 && hash
    }, "a field for each connection")
    const values = Object.values(fields).map((value) => JSON.parse(value))
    for (const { node, ref, meta, since } of values) {
      assert.match(node, /^[0-9a-f]{8}-[0-9a-f-]{27}$/)
      assert.ok(typeof ref === "string" && ref.length > 0)
      assert.equal(typeof meta, "object")
      assert.ok(since, "since when")
    }
    assert.equal(new Set(values.map((value) => value.node)).size, 2, "one on each node")
    assert.deepEqual(values.map((value) => value.meta.name).sort(), ["One", "Two"])
    assert.equal(await redis.call("TYPE", userKey("room:1", "odd:{user} %é")), "hash")
  })

  test("no presence key is without a TTL, and none lives longer than it should", async () => {
    const rooms = [fresh(), fresh("öl {x}")]
    for (const room of rooms) for (const node of [a, b]) await joinAs(node, room, `user of ${node.port}`)
    await until(async () => (await redis.call("SCARD", usersKey(rooms[1]))) === 2, "both are in Redis")
    const keys = await redis.keys("presence:*")
    assert.ok(keys.includes(usersKey(rooms[0])) && keys.includes(usersKey(rooms[1])), keys.join("\n"))
    for (const key of keys) {
      const ttl = await redis.call("TTL", key)
      if (ttl === -2) continue // gone since we asked
      assert.ok(ttl > 0 || (ttl === 0 && (await redis.call("PTTL", key)) > 0), `${key}: ${ttl}`)
      if (!/last.?seen/i.test(key)) assert.ok(ttl <= 60, `${key}: ${ttl}`)
    }
  })

  test("who leaves leaves Redis too", async () => {
    const room = fresh()
    const ada = await joinAs(a, room, "ada")
    const bo = await joinAs(b, room, "bo")
    await until(async () => (await redis.call("SCARD", usersKey(room))) === 2, "both are in Redis")
    ada.channel.leave()
    await until(async () => same(await redis.call("SMEMBERS", usersKey(room)), ["bo"]), "one is left")
    await until(async () => (await redis.call("EXISTS", userKey(room, "ada"))) === 0, "her hash is gone")
    bo.vanish()
    await until(async () => (await redis.call("EXISTS", usersKey(room), userKey(room, "bo"))) === 0, "nothing is left")
  })

  test("joining the other node within the grace shows nobody a leave", async () => {
    const room = fresh()
    const watcher = await joinAs(a, room, "watcher")
    const ada = await joinAs(a, room, "ada")
    await until(() => watcher.sees("ada", "watcher"), "ada is there")
    ada.vanish()
    await joinAs(b, room, "ada")
    await holds(() => watcher.sees("ada", "watcher"), "she never left", 3000, watcher.users)
    await until(() => watcher.refs("ada").length === 1, "and her old connection is gone", 5000, watcher.roster)
    for (const node of [a, b]) await counted(node, room, 2)
  })

  test("join and leave on two nodes at once end where they should", async () => {
    const room = fresh()
    const watchers = [await joinAs(a, room, "watcher a"), await joinAs(b, room, "watcher b")]
    await Promise.all(
      Array.from({ length: 20 }, async (_, i) => {
        const me = await joinAs(i % 2 ? a : b, room, `u${i % 10}`, { meta: { i } })
        if (i >= 10) me.channel.leave()
      }),
    )
    const users = ["watcher a", "watcher b", ...Array.from({ length: 10 }, (_, i) => `u${i}`)]
    for (const me of watchers) {
      await until(() => me.sees(...users) && users.every((user) => me.refs(user).length === 1), "the first ten", 5000, me.roster)
    }
    assert.deepEqual(watchers[0].roster(), watchers[1].roster())
    for (const node of [a, b]) await counted(node, room, 12)
    await until(async () => same((await redis.call("SMEMBERS", usersKey(room))).sort(), users.sort()), "Redis agrees")
  })

  test("channels and users are known on every node", async () => {
    const prefix = fresh("known")
    await joinAs(a, `${prefix}/1`, "ada")
    await joinAs(b, `${prefix}/2`, "bo")
    for (const node of [a, b]) {
      await until(async () => {
        const { json } = await node.get(`/v1/channels?prefix=${encodeURIComponent(prefix)}`)
        return same(json.channels.map((one) => [one.channel, one.online]).sort(), [[`${prefix}/1`, 1], [`${prefix}/2`, 1]])
      }, "both channels")
      await until(async () => (await node.get("/v1/users/bo/presence")).json.channels.includes(`${prefix}/2`), "bo's channel")
    }
  })
})

describe("a node ends", () => {
  let redis, a, b, c
  before(async () => {
    redis = await startRedis()
    const env = { REDIS_URL: redis.url }
    ;[a, b, c] = await Promise.all([startNode(env), startNode(env), startNode(env)])
  })
  after(async () => {
    await Promise.all([a?.stop(), b?.stop(), c?.stop()])
    await redis?.stop()
  })
  afterEach(closeAll)

  test("three nodes show the same roster everywhere", async () => {
    const room = fresh()
    const all = []
    for (const [i, node] of [a, b, c].entries()) {
      all.push(await joinAs(node, room, `u${i}`, { meta: { i } }), await joinAs(node, room, "everywhere", { meta: { i } }))
    }
    const users = ["everywhere", "u0", "u1", "u2"]
    for (const me of all) {
      await until(() => me.sees(...users) && me.refs("everywhere").length === 3, "all of it", 5000, me.roster)
      assert.deepEqual(me.refs("everywhere"), all[0].refs("everywhere"), "with the same refs")
    }
    for (const node of [a, b, c]) await counted(node, room, 4, 6)
    await until(async () => same((await redis.call("SMEMBERS", usersKey(room))).sort(), users), "Redis agrees")
  })

  test("SIGTERM leaves no ghost, closes with 1012 and ends within 10 s", async () => {
    const room = fresh()
    const watchers = [await joinAs(a, room, "watcher a"), await joinAs(b, room, "watcher b")]
    const going = await startNode({ REDIS_URL: redis.url })
    const socket = await connectRaw(going)
    await socket.join(room, { user_id: "ada" })
    const dropped = await connectRaw(going)
    await dropped.join(room, { user_id: "in its grace" })
    const users = ["watcher a", "watcher b", "ada", "in its grace"]
    for (const me of watchers) await until(() => me.sees(...users), "all are there", 5000, me.users)
    dropped.close()
    const { code, signal, ms } = await going.stop("SIGTERM")
    assert.deepEqual({ code, signal }, { code: 0, signal: null }, going.log())
    assert.ok(ms < 10_000, `it took ${ms} ms`)
    assert.equal((await socket.end()).code, 1012)
    for (const me of watchers) await until(() => me.sees("watcher a", "watcher b"), "no ghost", 3000, me.users)
    assert.deepEqual((await redis.call("SMEMBERS", usersKey(room))).sort(), ["watcher a", "watcher b"])
    assert.equal(await redis.call("EXISTS", userKey(room, "ada"), userKey(room, "in its grace")), 0)
  })

  test("kill -9 clears the node's members everywhere within 15 s, in Redis too", async () => {
    const room = fresh()
    const watchers = [await joinAs(a, room, "watcher a"), await joinAs(b, room, "watcher b")]
    await joinAs(c, room, "lost")
    await joinAs(c, room, "both", { meta: { node: "c" } })
    await joinAs(a, room, "both", { meta: { node: "a" } })
    for (const me of watchers) await until(() => me.sees("watcher a", "watcher b", "lost", "both") && me.refs("both").length === 2, "all are there", 5000, me.roster)
    const killed = Date.now()
    await c.stop("SIGKILL")
    for (const me of watchers) {
      await until(() => me.sees("watcher a", "watcher b", "both"), "the dead node's member is gone", 15_000 - (Date.now() - killed), me.users)
      await until(() => same(me.roster().both, [{ node: "a" }]), "the one on a living node stays", 1000, me.roster)
      assert.deepEqual(me.ledger.of("both"), ["both came"])
      assert.deepEqual(me.ledger.of("lost"), ["lost came", "lost went"], "one leave")
    }
    for (const node of [a, b]) await counted(node, room, 3)
    const left = 15_000 - (Date.now() - killed)
    await until(async () => (await redis.call("EXISTS", userKey(room, "lost"))) === 0, "its hash is gone", left)
    assert.ok(!(await redis.call("SMEMBERS", usersKey(room))).includes("lost"))
    assert.equal(Object.keys(await redis.hash(userKey(room, "both"))).length, 1)
  })
})

test("a node that was killed alone haunts nobody: its successor starts with an empty room, and cleans up", async () => {
  const redis = await startRedis()
  const env = { REDIS_URL: redis.url, ROLLCALL_NODE_TTL_SECONDS: "2" }
  let node = await startNode(env)
  try {
    await joinAs(node, "room", "ghost")
    await until(async () => (await redis.call("EXISTS", userKey("room", "ghost"))) === 1, "it is written")
    await node.stop("SIGKILL")
    await closeAll()
    // The lease must be over: until then the node could be alive.
    await until(async () => (await redis.call("KEYS", "presence:node:*")).every((key) => key.endsWith(":channels")), "the lease is over", 4000)
    node = await startNode(env)
    const me = await joinAs(node, "room", "me")
    assert.deepEqual(me.users(), ["me"])
    await until(async () => (await redis.call("EXISTS", userKey("room", "ghost"))) === 0, "Redis is clean", 10_000)
    assert.deepEqual(me.ledger.moves, ["me came"])
  } finally {
    await node.stop()
    await redis.stop()
    await closeAll()
  }
})

test("one survivor cleans up after a node: who holds the lock does, the other waits, and it is told once", async () => {
  const redis = await startRedis()
  const env = { REDIS_URL: redis.url, ROLLCALL_NODE_TTL_SECONDS: "2" }
  const [a, b, c] = await Promise.all([startNode(env), startNode(env), startNode(env)])
  try {
    const room = fresh()
    const watchers = [await joinAs(a, room, "watcher a"), await joinAs(b, room, "watcher b")]
    await joinAs(c, room, "lost")
    for (const me of watchers) await until(() => me.sees("watcher a", "watcher b", "lost"), "all are there", 5000, me.users)
    const [field] = Object.keys(await redis.hash(userKey(room, "lost")))
    const lock = `lock:presence-clean-up-${field.split(":")[0]}`
    await redis.call("SET", lock, "somebody else")
    await c.stop("SIGKILL")
    for (const me of watchers) await until(() => me.sees("watcher a", "watcher b"), "its member is gone", 8000, me.users)
    const stands = async () => (await redis.call("EXISTS", userKey(room, "lost"))) === 1
    await holds(stands, "nobody cleans up without the lock", 3000)
    assert.equal(await redis.call("GET", lock), "somebody else", "nor takes another's away")
    await redis.call("DEL", lock)
    await until(async () => !(await stands()), "cleaned up once the lock is free", 5000)
    await until(async () => (await redis.call("EXISTS", lock)) === 0, "and the lock is given back")
    assert.ok(Number(await redis.call("GET", `cache:fence:${lock}`)) > 1e12, "it was taken through the lock")
    await until(() => /cleaned up after/.test(a.log() + b.log()), "the log says so")
    assert.equal((a.log() + b.log()).match(/cleaned up after a node/g).length, 1)
  } finally {
    await Promise.all([a.stop(), b.stop(), c.stop("SIGKILL")])
    await redis.stop()
    await closeAll()
  }
})

describe("Redis goes away", () => {
  let redis, a, b
  before(async () => {
    redis = await startRedis()
    ;[a, b] = await Promise.all([startNode({ REDIS_URL: redis.url }), startNode({ REDIS_URL: redis.url })])
  })
  after(async () => {
    await redis?.stop("SIGKILL")
    await Promise.all([a?.stop(), b?.stop()])
  })
  afterEach(closeAll)

  const couple = async (room) => {
    const pair = [await joinAs(a, room, "ada"), await joinAs(b, room, "bo")]
    for (const me of pair) await until(() => me.sees("ada", "bo"), "both see both", 5000, me.users)
    return pair
  }
  const undisturbed = (pair) => {
    for (const me of pair) {
      assert.deepEqual([...me.ledger.moves].sort(), ["ada came", "bo came"], "nobody saw a false leave or join")
      assert.deepEqual(me.closes, [], "no socket was closed")
    }
  }

  test("restarted empty: nobody sees a leave or a join, and the keys come back", async () => {
    const room = fresh()
    const pair = await couple(room)
    await until(async () => (await redis.call("SCARD", usersKey(room))) === 2, "both are in Redis")
    const refs = pair.map((me) => [me.refs("ada"), me.refs("bo")])
    await redis.restartEmpty()
    await until(async () => same((await redis.call("SMEMBERS", usersKey(room))).sort(), ["ada", "bo"]), "the keys are back", 25_000)
    await until(async () => (await redis.call("EXISTS", userKey(room, "ada"), userKey(room, "bo"))) === 2, "the hashes too")
    await becomes(a, HEALTHY)
    await becomes(b, HEALTHY)
    // Longer than a node's lease: whoever was going to be declared dead has been by now.
    await holds(() => pair.every((me) => me.sees("ada", "bo")), "both stay", 12_000)
    undisturbed(pair)
    assert.deepEqual(pair.map((me) => [me.refs("ada"), me.refs("bo")]), refs)
    for (const node of [a, b]) await counted(node, room, 2)
  })

  test("emptied by FLUSHALL: the same", async () => {
    const room = fresh()
    const pair = await couple(room)
    await redis.call("FLUSHALL")
    await until(async () => same((await redis.call("SMEMBERS", usersKey(room))).sort(), ["ada", "bo"]), "the keys are back", 30_000)
    await holds(() => pair.every((me) => me.sees("ada", "bo")), "both stay", 3000)
    undisturbed(pair)
  })

  for (const [what, away, back] of [
    ["stopped", () => redis.stop(), () => redis.start()],
    ["frozen", () => redis.freeze(), () => redis.thaw()],
  ]) {
    test(`${what} for 5 s and more: sockets stay, local joins go on, and the other node sees later what it missed`, async () => {
      const room = fresh()
      const pair = await couple(room)
      const leaving = await joinAs(a, room, "leaving")
      for (const me of pair) await until(() => me.sees("ada", "bo", "leaving"), "three", 5000, me.users)
      const gone = Date.now()
      await away()
      try {
        const cy = await joinAs(a, room, "cy")
        await until(() => pair[0].sees("ada", "bo", "cy", "leaving"), "a local join is seen at once", 2000, pair[0].users)
        await until(() => cy.sees("ada", "bo", "cy", "leaving"), "and sees who was there", 2000, cy.users)
        leaving.channel.leave()
        await until(() => pair[0].sees("ada", "bo", "cy"), "a local leave too", 2000, pair[0].users)
        await counted(a, room, 3)
        for (const node of [a, b]) {
          await becomes(node, DEGRADED)
          assert.equal((await node.get("/healthz")).status, 200)
        }
        await holds(() => pair[1].sees("ada", "bo", "leaving"), "the other node keeps what it knew", Math.max(0, gone + 5000 - Date.now()), pair[1].users)
      } finally {
        await back()
      }
      await until(() => pair[1].sees("ada", "bo", "cy"), "it learns what it missed", 25_000, pair[1].users)
      for (const node of [a, b]) {
        await becomes(node, HEALTHY)
        await counted(node, room, 3)
      }
      await until(async () => same((await redis.call("SMEMBERS", usersKey(room))).sort(), ["ada", "bo", "cy"]), "Redis too", 25_000)
      for (const me of pair) {
        for (const user of ["ada", "bo", "cy"]) assert.deepEqual(me.ledger.of(user), [`${user} came`])
        assert.deepEqual(me.ledger.of("leaving"), ["leaving came", "leaving went"])
        assert.deepEqual(me.closes, [])
      }
    })
  }
})

describe("Redis comes late", () => {
  afterEach(closeAll)

  test("a node started without its Redis works alone, and joins the others when it can", async () => {
    const redis = await startRedis({ started: false })
    const nodes = await Promise.all([startNode({ REDIS_URL: redis.url }), startNode({ REDIS_URL: redis.url })])
    try {
      const room = fresh()
      const [ada, bo] = await Promise.all(nodes.map((node, i) => joinAs(node, room, ["ada", "bo"][i])))
      await until(() => ada.sees("ada") && bo.sees("bo"), "each sees its own")
      for (const node of nodes) await becomes(node, DEGRADED)
      await redis.start()
      for (const me of [ada, bo]) await until(() => me.sees("ada", "bo"), "both see both", 25_000, me.users)
      for (const node of nodes) {
        await becomes(node, HEALTHY)
        await counted(node, room, 2)
      }
      assert.deepEqual([ada.closes, bo.closes], [[], []])
    } finally {
      await Promise.all(nodes.map((node) => node.stop()))
      await redis.stop()
    }
  })
})
