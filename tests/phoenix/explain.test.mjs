// What operators are told: why a user is online, and at each fault what is wrong and who notices it.

import assert from "node:assert/strict"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, connectRaw, counted, fresh, holds, joinAs, until } from "./client.mjs"
import { connect, startRedis } from "./redis.mjs"
import { startNode } from "./server.mjs"

const KEY = "explain-service-key"
const bearer = { Authorization: `Bearer ${KEY}` }

const explain = async (node, user, headers = bearer) => {
  const { status, json } = await node.get(`/v1/users/${encodeURIComponent(user)}/presence?explain=true`, headers)
  assert.equal(status, 200, JSON.stringify(json))
  return json
}
const ready = async (node) => (await node.get("/readyz")).json
const wrong = async (node) => (await ready(node)).problems.map((one) => one.what)
const gauge = async (node, what) => {
  const { text } = await node.get("/metrics")
  return Number(new RegExp(`^rollcall_problem\\{what="${what}"\\} (\\d)$`, "m").exec(text)?.[1])
}
const lines = (node, pattern) => node.log().split("\n").filter((line) => pattern.test(line)).length

/** The problem is told by /readyz, in the metrics and in the log. */
async function told(node, what, ms = 10_000) {
  const problem = await until(async () => (await ready(node)).problems.find((one) => one.what === what), `${what} is told`, ms, () => ready(node))
  assert.ok(!Number.isNaN(Date.parse(problem.since)), problem.since)
  assert.equal(await gauge(node, what), 1)
  assert.ok(lines(node, new RegExp(`problem="${what}"`)) >= 1, `a line about ${what}`)
  return problem
}

describe("why a user is online", () => {
  let redis, a, b
  before(async () => {
    redis = await startRedis()
    // A lease long enough that the test gets its answers within it.
    const env = { REDIS_URL: redis.url, SERVICE_KEY: KEY, ROLLCALL_NODE_TTL_SECONDS: "6", ROLLCALL_GRACE_SECONDS: "5" }
    ;[a, b] = await Promise.all([startNode(env), startNode(env)])
    await until(async () => (await wrong(a)).length + (await wrong(b)).length === 0, "both are calm", 20_000, () => wrong(a))
  })
  after(async () => {
    await Promise.all([a?.stop(), b?.stop("SIGKILL")])
    await redis?.stop()
  })
  afterEach(closeAll)

  test("only holders of the service key are told, and without being asked nothing changes", async () => {
    await joinAs(a, fresh(), "ada")
    assert.equal((await a.get("/v1/users/ada/presence?explain=true")).status, 401)
    const session = await a.post("/v1/sessions", { user_id: "ada" }, bearer)
    const token = { Authorization: `Bearer ${session.json.access_token}` }
    assert.equal((await a.get("/v1/users/ada/presence?explain=true", token)).status, 403)
    const { status, json } = await a.get("/v1/users/ada/presence")
    assert.equal(status, 200)
    assert.deepEqual(Object.keys(json).sort(), ["channels", "connections", "last_seen", "online", "user"])
  })

  test("each connection on each node, with its lease and its heartbeat", async () => {
    const [room, hall, user] = [fresh("room"), fresh("hall"), fresh("user")]
    await joinAs(a, room, user, { meta: { tab: 1 } })
    await joinAs(b, room, user, { meta: { tab: 2 } })
    await joinAs(b, hall, user)
    for (const node of [a, b]) await until(async () => (await explain(node, user)).explain.length === 3, "three connections", 5000, () => explain(node, user))
    const { connections, online, explain: all } = await explain(a, user)
    assert.deepEqual([online, connections], [true, 3])
    const [mine] = all.filter((one) => one.local)
    const theirs = all.filter((one) => !one.local)
    assert.deepEqual([mine.channel, mine.meta, mine.reason], [room, { tab: 1 }, `connected to this node, ${(await ready(a)).node}`])
    const other = (await ready(b)).node
    for (const one of theirs) {
      assert.equal(one.node, other)
      assert.equal(one.reason, `connected to node ${other}`)
    }
    for (const one of all) {
      assert.ok(one.lease_left_ms > 3000 && one.lease_left_ms <= 6000, `${one.lease_left_ms}`)
      const [since, beat] = [Date.parse(one.since), Date.parse(one.last_heartbeat)]
      assert.ok(Math.abs(beat - since) < 25_000 && Math.abs(Date.now() - beat) < 25_000, `${one.since} ${one.last_heartbeat}`)
      assert.deepEqual([one.waiting_since, one.grace_left_ms], [null, null])
      assert.ok(one.ref.length > 0)
    }
  })

  test("a socket that ended is kept for the grace, and both nodes say until when", async () => {
    const [room, user] = [fresh("room"), fresh("user")]
    const witness = await joinAs(a, room, "witness")
    const raw = await connectRaw(b)
    raw.socket.on("error", () => {})
    await raw.join(room, { user_id: user })
    await until(() => witness.sees("witness", user), "it is seen")
    raw.socket._socket.resetAndDestroy()
    const holder = (await ready(b)).node
    for (const node of [a, b]) {
      const one = await until(async () => (await explain(node, user)).explain.find((one) => one.waiting_since), "it waits", 4000, () => explain(node, user))
      assert.match(one.reason, new RegExp(`^its socket on node ${holder} ended; kept for the grace until 2`))
      assert.ok(one.grace_left_ms > 0 && one.grace_left_ms <= 5000, `${one.grace_left_ms}`)
      assert.ok(Math.abs(Date.parse(one.waiting_since) + 5000 - Date.now() - one.grace_left_ms) < 1500, `${one.waiting_since} ${one.grace_left_ms}`)
    }
    await until(() => witness.sees("witness"), "then it is gone", 10_000, witness.users)
  })

  test("a killed node's member: within the lease it is told whose it is and when it will be gone", async () => {
    const [room, user] = [fresh("room"), fresh("ghost")]
    const witness = await joinAs(a, room, "witness")
    const raw = await connectRaw(b)
    raw.socket.on("error", () => {})
    await raw.join(room, { user_id: user })
    await until(() => witness.sees("witness", user), "it is seen")
    const dead = (await ready(b)).node
    await b.stop("SIGKILL")
    const late = await until(
      async () => (await explain(a, user)).explain.find((one) => one.node === dead && /has not renewed its lease/.test(one.reason)),
      "the lease is told to be late",
      5000,
      () => explain(a, user),
    )
    assert.match(late.reason, new RegExp(`^node ${dead} has not renewed its lease for \\d+ ms; it will be declared gone in ${late.lease_left_ms} ms unless it does$`))
    assert.ok(witness.sees("witness", user), "it is still shown")
    await until(() => witness.sees("witness"), "then it is gone", 15_000, witness.users)
    const gone = await told(a, "node_gone")
    assert.deepEqual([gone.detail, gone.users_affected], [`node ${dead}`, true])
    await until(async () => (await explain(a, user)).explain.length === 0, "nothing is left to explain", 10_000, () => explain(a, user))
  })
})

describe("operators are told", () => {
  let redis, node
  before(async () => {
    redis = await startRedis()
    node = await startNode({ REDIS_URL: redis.url, SERVICE_KEY: KEY, ROLLCALL_NODE_TTL_SECONDS: "2", ROLLCALL_PRESENCE_TTL_SECONDS: "6" })
    await until(async () => (await wrong(node)).length === 0, "it is calm", 20_000, () => wrong(node))
  })
  after(async () => {
    await node?.stop("SIGKILL")
    await redis?.stop()
  })
  afterEach(closeAll)

  test("nothing, when nothing is wrong", async () => {
    const { users_affected, problems, writes_waiting } = await ready(node)
    assert.deepEqual([users_affected, problems], ["no: everybody is served, and sees everybody", []])
    assert.equal(typeof writes_waiting, "number")
    assert.equal(await gauge(node, "redis_away"), 0)
  })

  test("Redis away, and back: since when, whether users notice, who is online all the same", async () => {
    const [room, user] = [fresh(), fresh("user")]
    const witness = await joinAs(node, room, user)
    await until(async () => (await explain(node, user)).explain[0]?.last_heartbeat, "it is in Redis")
    const before = lines(node, /problem="redis_away"/)
    await redis.kill()
    const problem = await told(node, "redis_away")
    assert.equal(problem.users_affected, true)
    const { users_affected, redis: state, degraded, status } = await ready(node)
    assert.deepEqual([status, state, degraded], ["ready", "down", true])
    assert.match(users_affected, /^yes: this node goes on alone/)
    const { explain: all, online } = await explain(node, user)
    assert.deepEqual([online, all.length, all[0].lease_left_ms, all[0].last_heartbeat], [true, 1, null, null])
    assert.match(all[0].reason, /^connected to this node/)
    await holds(() => witness.sees(user), "nobody is seen to leave", 2000)
    assert.ok(lines(node, /problem="redis_away"/) <= before + 2, "it is not said over and over")
    await redis.start()
    await until(async () => !(await wrong(node)).includes("redis_away"), "it is over", 15_000, () => wrong(node))
    await until(() => /over problem="redis_away"/.test(node.log()), "the log says so")
    await until(async () => (await wrong(node)).filter((what) => what !== "lease_lost").length === 0, "and so is all that follows", 20_000, () => wrong(node))
    assert.equal(await gauge(node, "redis_away"), 0)
  })

  test("the lease gone from a Redis that is there", async () => {
    await joinAs(node, fresh(), "ada")
    await redis.call("FLUSHALL")
    const problem = await told(node, "lease_lost", 10_000)
    assert.equal(problem.users_affected, true)
    await until(async () => !(await wrong(node)).includes("rewriting"), "all is written again", 10_000, () => wrong(node))
  })

  test("judgement that rests", async () => {
    await redis.call("FLUSHALL")
    const problem = await told(node, "judgement_resting")
    assert.equal(problem.users_affected, false)
    await until(async () => !(await wrong(node)).includes("judgement_resting"), "a lease's life later it is over", 15_000)
  })

  test("the subscription alone cut", async () => {
    const killer = await connect(redis.port)
    let over = false
    // Again and again, so that it is seen to be lost.
    const cutting = (async () => {
      while (!over) {
        await killer.call(["CLIENT", "KILL", "TYPE", "pubsub"])
        await new Promise((resolve) => setTimeout(resolve, 2))
      }
    })()
    const problem = await told(node, "subscription_lost", 20_000).finally(() => (over = true))
    await cutting
    killer.close()
    assert.equal(problem.users_affected, true)
    await until(async () => !(await wrong(node)).includes("subscription_lost"), "it is over", 20_000, () => wrong(node))
  })

  test("readers that do not read", async () => {
    const slow = await startNode({ ROLLCALL_MAX_OUTPUT_BYTES: "65536", ROLLCALL_MAX_PRESENCE_RATE: "1000", ROLLCALL_MAX_PRESENCE_BURST: "1000" })
    try {
      const room = fresh()
      const stalled = await connectRaw(slow)
      await stalled.join(room, { observe: true })
      stalled.socket._socket.pause()
      const busy = await connectRaw(slow)
      const { ref } = await busy.join(room, { user_id: "busy" })
      let n = 0
      const flood = setInterval(() => busy.send(ref, String(n), room, "presence", { type: "presence", event: "track", payload: { n: n++, blob: "x".repeat(4000) } }), 5)
      try {
        const problem = await told(slow, "slow_readers", 60_000)
        assert.match(problem.effect, /nobody else is affected/)
      } finally {
        clearInterval(flood)
      }
      await counted(slow, room, 1)
    } finally {
      await slow.stop("SIGKILL")
    }
  })
})
