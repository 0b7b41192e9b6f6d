// Coming back within the grace, to any node: nobody is shown anything. Watched through the real client on
// every node, and compared with what HTTP and Redis count.

import assert from "node:assert/strict"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, connectRaw, counted, fresh, holds, joinAs, member, same, until } from "./client.mjs"
import { startRedis } from "./redis.mjs"
import { startNode } from "./server.mjs"

const GRACE = 2000
const SERVICE = "a-service-key-of-the-tests"
const enc = (name) => name.replace(/[%:{}\u0000-\u001f\u007f]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`)
const usersKey = (room) => `presence:channel:${enc(room)}:users`
const userKey = (room, user) => `presence:channel:${enc(room)}:user:${enc(user)}`

let redis
const env = () => ({ REDIS_URL: redis.url, ROLLCALL_GRACE_SECONDS: String(GRACE / 1000), ROLLCALL_NODE_TTL_SECONDS: "2", SERVICE_KEY: SERVICE })
const startTwo = () => Promise.all([startNode(env()), startNode(env())])

let a, b
before(async () => {
  redis = await startRedis()
  ;[a, b] = await startTwo()
})
after(async () => {
  await Promise.all([a?.stop(), b?.stop()])
  await redis?.stop()
})
afterEach(closeAll)

/** Those who watch a room, on each of `nodes`, without being in it. */
const watch = (nodes, room) => Promise.all(nodes.map((node) => joinAs(node, room, `watcher of ${node.port}`, { observe: true })))

const seats = async (room, user) => Object.values(await redis.hash(userKey(room, user))).map((value) => JSON.parse(value))
/** The seat waits, and the other nodes have been told: both are one step in Redis. */
const waits = (room, user) => until(async () => (await seats(room, user)).some((seat) => seat.waiting), `${user} is waited for`)

/** The transport is gone from one moment to the next: no leave, no close frame, and no coming back by itself. */
const drop = (me) => {
  me.socket.conn._socket.destroy()
  me.vanish()
}

/** `user` is in the room, seen by all; from then on whoever watches notes what it is told. */
async function seen(watchers, node, room, user, options) {
  const me = await joinAs(node, room, user, options)
  // A session says who it is; the roster comes after the reply.
  if (!user) await until(() => me.users().length > 0, "the roster")
  user ??= me.users()[0]
  for (const watcher of watchers) await until(() => watcher.sees(user), `${user} is seen`, 5000, watcher.users)
  for (const watcher of watchers) watcher.diffs.length = 0
  return me
}

/** Nobody was told anything, nor is when the grace is over, and all who count agree. */
async function undisturbed(watchers, nodes, room, user, connections = 1) {
  const told = () => watchers.flatMap((watcher) => watcher.diffs)
  await holds(() => told().length === 0, "no diff at all", GRACE + 500, told)
  for (const watcher of watchers) assert.deepEqual(watcher.ledger.moves, [`${user} came`])
  await agree(nodes, room, { [user]: connections })
}

/** HTTP on every node and Redis count the same. */
async function agree(nodes, room, members) {
  const connections = Object.values(members).reduce((sum, n) => sum + n, 0)
  for (const node of nodes) await counted(node, room, Object.keys(members).length, connections)
  const users = Object.keys(members).sort()
  await until(async () => same((await redis.call("SMEMBERS", usersKey(room))).sort(), users), "the set in Redis", 5000, () => redis.call("SMEMBERS", usersKey(room)))
  for (const user of users) {
    await until(async () => (await redis.call("HLEN", userKey(room, user))) === members[user], `${user}'s hash in Redis`, 5000, () => seats(room, user))
  }
}

async function session(user) {
  const { status, json } = await a.post("/v1/sessions", { user_id: user }, { authorization: `Bearer ${SERVICE}` })
  assert.equal(status, 201)
  return { params: { token: json.access_token } }
}

describe("coming back to the other node shows nobody anything", () => {
  const meta = { name: "Ada" }

  for (const [who, options] of [
    ["with a resume key", async () => ({ meta, resume: "the key of this tab" })],
    ["with a resume key in the connect parameters", async () => ({ meta, params: { resume: "the key of this tab" } })],
    ["with a session and no key", async () => ({ meta, ...(await session("ada")) })],
    ["with nothing but a user_id", async () => ({ meta })],
  ]) {
    test(who, async () => {
      const room = fresh()
      const watchers = await watch([a, b], room)
      const claim = await options()
      const user = claim.params?.token ? undefined : "ada"
      drop(await seen(watchers, a, room, user, claim))
      await waits(room, "ada")
      const back = await joinAs(b, room, user, claim)
      await undisturbed(watchers, [a, b], room, "ada")
      // And back again, twice: the origin stays the same.
      drop(back)
      await waits(room, "ada")
      drop(await joinAs(a, room, user, claim))
      await waits(room, "ada")
      await joinAs(b, room, user, claim)
      await undisturbed(watchers, [a, b], room, "ada")
    })
  }

  test("to a node that had not heard of the channel", async () => {
    const room = fresh()
    const [watcher] = await watch([a], room)
    drop(await seen([watcher], a, room, "ada", { meta }))
    await waits(room, "ada")
    const back = await joinAs(b, room, "ada", { meta })
    assert.deepEqual(back.users(), ["ada"])
    await undisturbed([watcher], [a, b], room, "ada")
  })

  test("with the key before the node has noticed that the socket is gone", async () => {
    const room = fresh()
    const watchers = await watch([a, b], room)
    const claim = { meta, resume: "the key of this tab" }
    const first = await seen(watchers, a, room, "ada", claim)
    const back = joinAs(b, room, "ada", claim)
    drop(first)
    await back
    await undisturbed(watchers, [a, b], room, "ada")
  })

  test("another meta is an update and nothing else", async () => {
    const room = fresh()
    const watchers = await watch([a, b], room)
    drop(await seen(watchers, a, room, "ada", { meta: { n: 1 } }))
    await waits(room, "ada")
    const [ref] = watchers[0].refs("ada")
    await joinAs(b, room, "ada", { meta: { n: 2 } })
    for (const watcher of watchers) {
      await until(() => same(watcher.roster(), { ada: [{ n: 2 }] }), "the new meta", 5000, watcher.roster)
      await holds(() => watcher.diffs.length === 1, "one diff", GRACE / 2 + 500, () => watcher.diffs)
      const [{ joins, leaves }] = watcher.diffs
      assert.deepEqual([joins.ada.metas[0].phx_ref_prev, joins.ada.metas[0].n, leaves.ada.metas[0].phx_ref], [ref, 2, ref])
      assert.deepEqual(watcher.ledger.moves, ["ada came"])
    }
    await agree([a, b], room, { ada: 1 })
  })
})

describe("the node that held the seat goes meanwhile", () => {
  const cases = [
    ["is killed while it waits, key", { resume: "the key of this tab" }, async (me, room, node) => {
      drop(me)
      await waits(room, "ada")
      await node.stop("SIGKILL")
    }],
    ["is killed while it waits, no key", {}, async (me, room, node) => {
      drop(me)
      await waits(room, "ada")
      await node.stop("SIGKILL")
    }],
    ["is killed with the socket open, key", { resume: "the key of this tab" }, async (me, room, node) => {
      await node.stop("SIGKILL")
      me.vanish()
    }],
    ["is stopped while it waits, no key", {}, async (me, room, node) => {
      drop(me)
      await waits(room, "ada")
      node.stop("SIGTERM")
    }],
    ["is stopped with the socket open, key", { resume: "the key of this tab" }, async (me, room, node) => {
      node.stop("SIGTERM")
      await until(() => me.closes.length > 0, "the socket is told to go", 5000)
      me.vanish()
    }],
  ]
  for (const [what, claim, go] of cases) {
    test(what, async () => {
      const room = fresh()
      const going = await startNode(env())
      const watchers = await watch([a, b], room)
      const me = await seen(watchers, going, room, "ada", claim)
      await go(me, room, going)
      await joinAs(b, room, "ada", claim)
      // Counted at once: nothing of the old seat is left, also where its node cannot take it away.
      await agree([a, b], room, { ada: 1 })
      await going.exited
      await until(async () => (await redis.call("SCARD", "presence:nodes")) === 2, "the node is cleared away", 15_000)
      await undisturbed(watchers, [a, b], room, "ada")
    })
  }
})

describe("leaving", () => {
  test("an explicit leave is immediate on both nodes, also after a return", async () => {
    for (const returns of [false, true]) {
      const room = fresh()
      const watchers = await watch([a, b], room)
      const claim = { resume: "the key of this tab" }
      let me = await seen(watchers, a, room, "ada", claim)
      if (returns) {
        drop(me)
        me = await joinAs(b, room, "ada", claim)
      }
      const start = Date.now()
      me.channel.leave()
      for (const watcher of watchers) await until(() => watcher.sees(), "she is gone", 1500, watcher.users)
      assert.ok(Date.now() - start < GRACE, "not after the grace")
      await agree([a, b], room, {})
      await holds(() => watchers.every((watcher) => watcher.sees()), "and stays away", GRACE)
      for (const watcher of watchers) assert.deepEqual(watcher.ledger.moves, ["ada came", "ada went"])
    }
  })

  test("an explicit leave holds though the node of the older seat is dead and cannot hear of it", async () => {
    const room = fresh()
    const going = await startNode(env())
    const watchers = await watch([a, b], room)
    const claim = { resume: "the key of this tab" }
    const me = await seen(watchers, going, room, "ada", claim)
    await going.stop("SIGKILL")
    me.vanish()
    const back = await joinAs(b, room, "ada", claim)
    back.channel.leave()
    for (const watcher of watchers) await until(() => watcher.sees(), "she is gone", 1500, watcher.users)
    await agree([a, b], room, {})
    await until(async () => (await redis.call("SCARD", "presence:nodes")) === 2, "the node is cleared away", 15_000)
    for (const watcher of watchers) assert.deepEqual(watcher.ledger.moves, ["ada came", "ada went"])
  })

  test("who does not come back leaves when the grace is over, on both nodes", async () => {
    const room = fresh()
    const watchers = await watch([a, b], room)
    const me = await seen(watchers, a, room, "ada", { resume: "the key of this tab" })
    const start = Date.now()
    drop(me)
    await holds(() => watchers.every((watcher) => watcher.sees("ada")), "she stays for the grace", GRACE - 200)
    for (const watcher of watchers) await until(() => watcher.sees(), "then she is gone", 1500, watcher.users)
    assert.ok(Date.now() - start < GRACE + 1000, `${Date.now() - start} ms`)
    await agree([a, b], room, {})
  })
})

describe("two that have the same key", () => {
  for (const [where, second] of [["the same node", () => a], ["two nodes", () => b]]) {
    test(`a duplicated tab on ${where} is a second connection, and either may close`, async () => {
      const room = fresh()
      const watchers = await watch([a, b], room)
      const claim = { resume: "the key of both tabs" }
      const first = await seen(watchers, a, room, "ada", claim)
      const other = await joinAs(second(), room, "ada", claim)
      for (const watcher of watchers) await until(() => watcher.refs("ada").length === 2, "two connections", 5000, watcher.roster)
      await agree([a, b], room, { ada: 2 })
      drop(other)
      for (const watcher of watchers) await until(() => watcher.refs("ada").length === 1, "one is left", GRACE + 1500, watcher.roster)
      await agree([a, b], room, { ada: 1 })
      const { status } = await first.track({ still: "here" })
      assert.equal(status, "ok")
      for (const watcher of watchers) {
        await until(() => same(watcher.roster(), { ada: [{ still: "here" }] }), "she goes on", 5000, watcher.roster)
        assert.deepEqual(watcher.ledger.moves, ["ada came"], "one member all the time")
      }
    })

    test(`a client that comes back to ${where} while its old socket hangs shows nobody anything`, async () => {
      const room = fresh()
      const watchers = await watch([a, b], room)
      const resume = "the key of this tab"
      const hanging = await connectRaw(a, { autoPong: false })
      await hanging.join(room, { user_id: "ada", resume })
      for (const watcher of watchers) await until(() => watcher.sees("ada"), "she is seen", 5000, watcher.users)
      for (const watcher of watchers) watcher.diffs.length = 0
      hanging.socket._socket.pause()
      await joinAs(second(), room, "ada", { resume })
      await undisturbed(watchers, [a, b], room, "ada")
      // The old socket ends at last.
      hanging.socket._socket.destroy()
      await undisturbed(watchers, [a, b], room, "ada")
    })
  }
})

describe("the key", () => {
  test("names a client without a name, the same each time", async () => {
    const room = fresh()
    const me = await joinAs(a, room, undefined, { resume: "the key of the nameless" })
    const [name] = me.users()
    assert.match(name, /^anon-[\w-]{16}$/)
    drop(me)
    const back = await joinAs(b, room, undefined, { resume: "the key of the nameless" })
    assert.deepEqual(back.users(), [name])
    const other = await joinAs(b, room, undefined, { resume: "the key of somebody else" })
    await until(() => other.users().length === 2, "another name", 5000, other.users)
  })

  test("is refused with a reason if it is none, and the socket lives on", async () => {
    const raw = await connectRaw(a)
    for (const resume of ["short", "x".repeat(129), 12345678, {}]) {
      const { status, response } = await raw.join("r", { user_id: "ada", resume })
      assert.deepEqual({ status, response }, { status: "error", response: { reason: "resume must be a string of 8 to 128 bytes" } })
    }
    await raw.heartbeat()
    const wrong = member(a, fresh(), { user_id: "ada" }, { params: { resume: "short" } })
    assert.equal((await wrong.joined).status, "error")
  })

  test("is another user's for nobody, and never told to anyone", async () => {
    const room = fresh()
    const resume = "a key that stays secret"
    const me = await joinAs(a, room, "ada", { resume })
    const spy = await connectRaw(b)
    await spy.join(room, { user_id: "bob", resume })
    await until(() => me.sees("ada", "bob"), "two members", 5000, me.users)
    drop(me)
    await waits(room, "ada")
    await joinAs(b, room, "ada", { resume, meta: { back: true } })
    await until(() => spy.got(room, "presence_diff").some((frame) => frame.text.includes("back")), "the update is told")
    const [seat] = await seats(room, "ada")
    assert.match(seat.resume, /^[\w-]{22}$/)
    const texts = [...spy.frames.map((frame) => frame.text), a.log(), b.log()]
    for (const node of [a, b]) {
      texts.push((await node.get(`/v1/channels/${encodeURIComponent(room)}/presence`)).text, (await node.get("/v1/users/ada/presence")).text)
    }
    for (const text of texts) {
      for (const secret of [resume, seat.resume, "waiting", "origin"]) assert.ok(!text.includes(secret), `${secret} in ${text}`)
    }
    assert.ok(!JSON.stringify(await seats(room, "ada")).includes(resume), "Redis has only a digest")
  })
})
