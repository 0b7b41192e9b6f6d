// Sentinels, and what users see while one Redis takes over from another.

import assert from "node:assert/strict"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, counted, fresh, holds, joinAs, until } from "../phoenix/client.mjs"
import { startNode } from "../phoenix/server.mjs"
import { enc, healthy, observers, seen, undisturbed } from "./common.mjs"
import { PASSWORD, SENTINEL_PASSWORD, sentinelGroup } from "./servers.mjs"

/** Life of a lease here, in milliseconds. */
const LEASE = 8_000
/** From the moment the primary dies until nodes hear each other again. */
const BOUND = 12_000

describe("a primary, a replica and three sentinels", () => {
  let group, a, b
  before(async () => {
    group = await sentinelGroup()
    const env = { REDIS_URL: group.url, ROLLCALL_NODE_TTL_SECONDS: String(LEASE / 1000) }
    // One of them is down when the nodes start.
    await group.sentinels[0].stop()
    ;[a, b] = await Promise.all([startNode(env), startNode(env)])
    await group.sentinels[0].start()
  })
  after(async () => {
    await Promise.all([a?.stop("SIGKILL"), b?.stop("SIGKILL")])
    await group?.stop()
  })
  afterEach(closeAll)

  test("the primary is killed and comes back as a replica, then a failover is asked for: nobody is seen to leave", async (t) => {
    const { first, second } = group
    for (const node of [a, b]) await healthy(node)
    const room = fresh()
    const all = await observers([a, b], room)
    const users = ["watcher 0", "watcher 1"]
    await joinAs(a, room, "before")
    users.push("before")
    await seen(all, users, 5000)

    await first.kill()
    const killed = Date.now()
    await joinAs(a, room, "during")
    users.push("during")
    await seen([all[0]], users, 2000)
    await group.named(second)
    t.diagnostic(`the sentinels name the replica after ${Date.now() - killed} ms`)
    await seen(all, users, BOUND - (Date.now() - killed))
    t.diagnostic(`shared again after ${Date.now() - killed} ms`)
    assert.ok(Date.now() - killed < BOUND)
    const key = `presence:channel:${enc(room)}:users`
    await until(async () => (await second.call("SCARD", key)) === users.length, "all stand in the new primary")
    for (const node of [a, b]) {
      await healthy(node)
      await counted(node, room, users.length)
    }

    await first.start()
    await group.follows(first, second)
    await joinAs(b, room, "between")
    users.push("between")
    await seen(all, users, 5000)
    // It refuses until it has seen that the replica is in step.
    const ask = async () => (await group.sentinels[1].call("SENTINEL", "FAILOVER", group.name)) === "OK"
    await until(ask, "the sentinel agrees to a failover", 20_000)
    const asked = Date.now()
    await group.named(first)
    await joinAs(b, room, "after")
    users.push("after")
    await seen(all, users, BOUND - (Date.now() - asked))
    t.diagnostic(`after the failover that was asked for, shared again after ${Date.now() - asked} ms`)
    await until(async () => (await first.call("SCARD", key)) === users.length, "all stand in the first again")
    // Longer than a lease: whoever was going to be declared dead has been by now.
    await holds(() => all.every((me) => me.sees(...users)), "all stay", LEASE + 1000)
    undisturbed(all, users)
    for (const node of [a, b]) await counted(node, room, users.length)
    const logs = a.log() + b.log()
    for (const secret of [PASSWORD, SENTINEL_PASSWORD]) {
      assert.ok(!logs.includes(secret) && !logs.includes(encodeURIComponent(secret)), "no password in a log")
    }
    await group.follows(second, first)
  })

  test("a replica that lacks the last write takes over: what is missing in it is not taken for gone", async (t) => {
    const primary = (await group.first.info("INFO", "replication")).role === "master" ? group.first : group.second
    const replica = primary === group.first ? group.second : group.first
    for (const node of [a, b]) await healthy(node)
    const room = fresh()
    const all = await observers([a, b], room)
    const users = ["watcher 0", "watcher 1"]
    const key = `presence:channel:${enc(room)}:users`
    // Here the first node will have nobody but in the write that gets lost.
    const other = fresh()
    const watcher = await joinAs(b, other, "watcher")
    await until(async () => (await replica.call("SCARD", key)) === 2, "the replica has both")
    // The lease says, there too, that everything of the nodes is written.
    await until(async () => {
      const leases = (await replica.call("KEYS", "presence:node:*")).filter((name) => !name.endsWith(":channels"))
      const said = await Promise.all(leases.map((name) => replica.call("GET", name)))
      return said.length === 2 && said.every((text) => text?.startsWith("settled"))
    }, "both nodes are settled", 10_000)

    // From here on the replica hears nothing more: its next login is refused.
    await replica.call("CONFIG", "SET", "masteruser", "nobody")
    await primary.call("CLIENT", "KILL", "TYPE", "replica")
    await until(async () => (await replica.info("INFO", "replication")).master_link_status === "down", "the replica is cut off")
    await joinAs(a, room, "late a")
    await joinAs(b, room, "late b")
    await joinAs(a, other, "only a")
    users.push("late a", "late b")
    await seen(all, users, 5000)
    await seen([watcher], ["watcher", "only a"], 5000)
    await until(async () => (await primary.call("SCARD", key)) === 4, "the primary has all")
    assert.equal(await replica.call("SCARD", key), 2, "the replica lacks the last")
    const identity = (await a.get("/readyz")).text
    await primary.kill()
    const killed = Date.now()
    // One node has no time to write again what is missing; its lease is still there, and the other reads.
    process.kill(a.pid, "SIGSTOP")
    try {
      await group.named(replica)
      await healthy(b)
      await until(async () => (await replica.call("SMEMBERS", key)).includes("late b"), "the other has written again", 5000)
      const { node } = JSON.parse(identity)
      assert.match(await replica.call("GET", `presence:node:${node}`), /^settled/, "the lease says too much")
      const stays = () => all[1].sees(...users) && watcher.sees("watcher", "only a")
      await holds(stays, "nobody is taken for gone", 1500, () => [all[1].users(), watcher.users()])
    } finally {
      process.kill(a.pid, "SIGCONT")
    }
    await until(async () => (await replica.call("SCARD", key)) === 4, "all stand in the new primary", BOUND - (Date.now() - killed))
    t.diagnostic(`everything stands again after ${Date.now() - killed} ms`)
    await holds(() => all.every((me) => me.sees(...users)), "all stay", LEASE + 1000, () => all.map((me) => me.users()))
    undisturbed(all, users)
    undisturbed([watcher], ["watcher", "only a"])
    await replica.call("CONFIG", "SET", "masteruser", "")
    await primary.start()
    await group.follows(primary, replica)
  })

  test("without sentinels the nodes go on with the primary that they know", async () => {
    for (const node of [a, b]) await healthy(node)
    await Promise.all(group.sentinels.map((sentinel) => sentinel.kill()))
    try {
      const room = fresh()
      const all = await observers([a, b], room)
      // The connections of both break, and must be made again without anybody to ask.
      const primary = (await group.first.info("INFO", "replication")).role === "master" ? group.first : group.second
      await primary.call("CLIENT", "KILL", "TYPE", "pubsub")
      await primary.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
      await joinAs(a, room, "later")
      await seen(all, ["later"], 10_000)
      for (const node of [a, b]) await healthy(node)
      undisturbed(all, ["watcher 0", "watcher 1", "later"])
    } finally {
      await Promise.all(group.sentinels.map((sentinel) => sentinel.start()))
    }
  })

  test("a primary that hangs is replaced, and nobody goes back to it", async (t) => {
    const old = (await group.first.info("INFO", "replication")).role === "master" ? group.first : group.second
    const next = old === group.first ? group.second : group.first
    await group.named(old)
    await group.follows(next, old)
    for (const node of [a, b]) await healthy(node)
    const room = fresh()
    const all = await observers([a, b], room)
    const users = ["watcher 0", "watcher 1", "during"]
    const key = `presence:channel:${enc(room)}:users`
    old.freeze()
    const frozen = Date.now()
    try {
      await joinAs(a, room, "during")
      await group.named(next)
      await seen(all, users, BOUND - (Date.now() - frozen))
      t.diagnostic(`shared again after ${Date.now() - frozen} ms`)
      await until(async () => (await next.call("SCARD", key)) === 3, "all stand in the new primary", 5000)
    } finally {
      old.thaw()
    }
    // It takes itself for a primary until the sentinels tell it otherwise.
    await group.follows(old, next)
    for (const node of [a, b]) await healthy(node)
    assert.equal(await next.call("SCARD", key), 3)
    undisturbed(all, users)
  })

  test("a primary that only the sentinels cannot reach is left as soon as they name another", async (t) => {
    const old = (await group.first.info("INFO", "replication")).role === "master" ? group.first : group.second
    const next = old === group.first ? group.second : group.first
    await group.named(old)
    await group.follows(next, old)
    for (const node of [a, b]) await healthy(node)
    const room = fresh()
    const all = await observers([a, b], room)
    const users = ["watcher 0", "watcher 1"]
    // Who is logged in stays so; the sentinels must log in again, and cannot.
    await old.call("CONFIG", "SET", "requirepass", "another")
    for (const line of (await old.call("CLIENT", "LIST")).split("\n")) {
      if (/ name=sentinel-/.test(line)) await old.call("CLIENT", "KILL", "ID", /^id=(\d+)/.exec(line)[1])
    }
    await group.named(next)
    const named = Date.now()
    assert.equal((await old.info("INFO", "replication")).role, "master", "it still takes writes")
    await joinAs(a, room, "later a")
    await joinAs(b, room, "later b")
    users.push("later a", "later b")
    const key = `presence:channel:${enc(room)}:users`
    await until(async () => (await next.call("SCARD", key)) === 4, "all stand in the new primary", 5000)
    t.diagnostic(`written to the new primary ${Date.now() - named} ms after it was named`)
    await seen(all, users, 5000)
    t.diagnostic(`seen by all ${Date.now() - named} ms after it was named`)
    const listening = async () => (await old.call("CLIENT", "LIST", "TYPE", "pubsub")).trim()
    await until(async () => (await listening()) === "", "nobody listens to the old one", 3000, listening)
    t.diagnostic(`nobody listens to the old one ${Date.now() - named} ms after`)
    const last = await joinAs(b, room, "last")
    users.push("last")
    await seen([...all, last], users, 2000)
    await holds(() => all.every((me) => me.sees(...users)), "all stay", LEASE + 1000)
    undisturbed(all, users)
  })
})
