// HAProxy with the configuration of deploy/ in front of two nodes, and of a Redis primary with its replica.

import assert from "node:assert/strict"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, counted, fresh, holds, joinAs, until } from "../phoenix/client.mjs"
import { connect, startRedis } from "../phoenix/redis.mjs"
import { startNode } from "../phoenix/server.mjs"
import { server } from "../redis/servers.mjs"
import { startPostgres } from "../state/postgres.mjs"
import { startHaproxy } from "./haproxy.mjs"

const PASSWORD = "a.password"
const ready = async (node) => (await node.get("/readyz")).json

describe("in front of the nodes", () => {
  let redis, nodes, haproxy
  const env = (more) => ({ REDIS_URL: redis.url, ROLLCALL_TRUSTED_PROXIES: "127.0.0.1/32", ROLLCALL_GRACE_SECONDS: "3", ...more })
  before(async () => {
    redis = await startRedis()
    nodes = await Promise.all([startNode(env()), startNode(env())])
    haproxy = await startHaproxy({ nodes })
    await haproxy.ups("nodes", ["node1", "node2"])
  })
  after(async () => {
    await haproxy?.stop()
    await Promise.all((nodes ?? []).map((node) => node.stop("SIGKILL")))
    await redis?.stop()
  })
  afterEach(closeAll)

  const connections = async (node) => Number(/^rollcall_connections (\d+)$/m.exec((await node.get("/metrics")).text)[1])

  test("sockets go to both, and everybody sees everybody", async () => {
    const room = fresh()
    const users = ["u0", "u1", "u2", "u3", "u4", "u5"]
    const all = []
    for (const user of users) all.push(await joinAs(haproxy, room, user))
    for (const me of all) await until(() => me.sees(...users), "all are seen", 5000, me.users)
    const open = await Promise.all(nodes.map(connections))
    assert.ok(open.every((count) => count >= 2), `spread: ${open}`)
    await counted(haproxy, room, users.length)
  })

  test("numbers stay inside, and a claimed address counts for nothing", async () => {
    assert.equal((await haproxy.get("/metrics")).status, 404)
    const strict = await startNode({ ROLLCALL_TRUSTED_PROXIES: "127.0.0.1/32", ROLLCALL_RATE_IP: "3" })
    const front = await startHaproxy({ nodes: [strict] })
    try {
      await front.ups("nodes", ["node1"])
      const answers = []
      for (let i = 0; i < 5; i++) answers.push((await front.get("/v1/channels/x/presence/count", { "X-Forwarded-For": `192.0.2.${i}` })).status)
      assert.deepEqual(answers, [200, 200, 200, 429, 429])
    } finally {
      await front.stop()
      await strict.stop()
    }
  })

  test("a node that drains gets nobody new, its clients go to the other, and nobody is seen to leave", async () => {
    const room = fresh()
    const users = Array.from({ length: 8 }, (_, i) => `stays ${i}`)
    const all = []
    for (const user of users) all.push(await joinAs(haproxy, room, user, { resume: `key of ${user}` }))
    for (const me of all) await until(() => me.sees(...users), "all are seen", 5000, me.users)
    const stopped = nodes[0].stop("SIGTERM")
    // Who comes meanwhile notices nothing: HAProxy asks the other node.
    const calls = []
    const asking = (async () => {
      while (nodes[0].running()) {
        const { status } = await haproxy.get("/v1/channels/x/presence/count")
        calls.push(status)
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
    })()
    const late = await joinAs(haproxy, room, "late")
    assert.equal((await stopped).code, 0)
    await asking
    assert.deepEqual([...new Set(calls)], [200], "no call failed")
    assert.ok(calls.length > 10, `${calls.length} calls`)
    for (const me of [...all, late]) await until(() => me.sees(...users, "late"), "all are there", 10_000, me.users)
    for (const me of all) for (const user of users) assert.ok(!me.ledger.went(user), `${user} was not seen to leave`)
    await haproxy.ups("nodes", ["node2"])
    await counted(nodes[1], room, users.length + 1)
    // It comes back, and gets clients again.
    nodes[0] = await startNode(env(), nodes[0].port)
    await haproxy.ups("nodes", ["node1", "node2"])
    const next = await joinAs(haproxy, room, "next")
    await until(async () => (await connections(nodes[0])) >= 1, "who has fewest gets the next")
    await until(() => next.sees(...users, "late", "next"), "all are seen", 5000, next.users)
  })

  test("a node that is killed is out at once, and its clients are on the other within seconds", async () => {
    const room = fresh()
    const users = ["a", "b", "c", "d"]
    const all = []
    for (const user of users) all.push(await joinAs(haproxy, room, user, { resume: `key of ${user}` }))
    for (const me of all) await until(() => me.sees(...users), "all are seen", 5000, me.users)
    await nodes[0].stop("SIGKILL")
    for (const me of all) await until(() => me.sees(...users), "all are there", 10_000, me.users)
    await haproxy.ups("nodes", ["node2"])
    for (let i = 0; i < 20; i++) assert.equal((await haproxy.get("/v1/channels/x/presence/count")).status, 200)
    nodes[0] = await startNode(env(), nodes[0].port)
    await haproxy.ups("nodes", ["node1", "node2"])
  })

  test("a node without Redis goes on being sent clients", async () => {
    await redis.kill()
    await until(async () => (await ready(nodes[0])).redis === "down", "it is noticed", 10_000)
    await holds(async () => (await haproxy.up("nodes")).length === 2, "both are up", 2000)
    await joinAs(haproxy, fresh(), "ada")
    await redis.start()
    for (const node of nodes) await until(async () => (await ready(node)).redis === "up", "Redis is back", 15_000)
  })
})

describe("in front of Redis", () => {
  test("the primary only; after a failover the other, and nobody is seen to leave", async () => {
    const args = (port) => ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--requirepass", PASSWORD, "--masterauth", PASSWORD, "--port", String(port), "--repl-diskless-sync-delay", "0"]
    const login = [PASSWORD]
    const first = await server(args, { login })
    const second = await server((port) => [...args(port), "--replicaof", "127.0.0.1", String(first.port)], { login })
    await until(async () => (await second.info("INFO", "replication")).master_link_status === "up", "the replica follows", 20_000)
    const haproxy = await startHaproxy({ redis: [first, second], password: PASSWORD })
    const nodes = []
    try {
      await haproxy.ups("redis_primary", ["redis1"])
      const env = { REDIS_URL: `redis://:${PASSWORD}@127.0.0.1:${haproxy.redisPort}`, ROLLCALL_NODE_TTL_SECONDS: "3" }
      nodes.push(...(await Promise.all([startNode(env), startNode(env)])))
      for (const node of nodes) await until(async () => (await ready(node)).redis === "up", "Redis is there", 10_000)
      const room = fresh()
      const [ada, bo] = [await joinAs(nodes[0], room, "ada"), await joinAs(nodes[1], room, "bo")]
      for (const me of [ada, bo]) await until(() => me.sees("ada", "bo"), "they see each other", 5000, me.users)

      await first.kill()
      for (const node of nodes) await until(async () => (await ready(node)).redis === "down", "it is noticed", 10_000)
      const during = await joinAs(nodes[0], room, "during")
      assert.equal(await second.call("REPLICAOF", "NO", "ONE"), "OK")
      await haproxy.ups("redis_primary", ["redis2"])
      for (const node of nodes) await until(async () => (await ready(node)).redis === "up", "Redis is there again", 15_000)
      for (const me of [ada, bo, during]) await until(() => me.sees("ada", "bo", "during"), "all see all", 20_000, me.users)
      for (const me of [ada, bo]) for (const user of ["ada", "bo"]) assert.ok(!me.ledger.went(user), `${user} was not seen to leave`)
      for (const node of nodes) await counted(node, room, 3)
      // Through HAProxy other services reach what is the primary now.
      const redis = await connect(haproxy.redisPort)
      assert.equal(await redis.call(["AUTH", PASSWORD]), "OK")
      assert.deepEqual((await redis.call(["SMEMBERS", `presence:channel:${room.replaceAll(":", "%3A")}:users`])).sort(), ["ada", "bo", "during"])
      redis.close()
    } finally {
      await closeAll()
      await Promise.all(nodes.map((node) => node.stop()))
      await haproxy.stop()
      await Promise.all([first.kill(), second.kill()])
    }
  })
})

describe("in front of PostgreSQL", () => {
  test("accounts are reached through it, and it says when the server is away", async () => {
    const postgres = await startPostgres()
    const { host, username } = new URL(postgres.url)
    const haproxy = await startHaproxy({ postgres: host, user: username })
    let node
    try {
      await haproxy.ups("postgres_server", ["postgres1"])
      node = await startNode({ DATABASE_URL: `postgres://${username}@127.0.0.1:${haproxy.postgresPort}/postgres`, ROLLCALL_SIGNUP: "on" })
      const account = { email: "ada@example.com", password: "correct horse" }
      assert.equal((await node.post("/auth/v1/signup", account)).status, 200)
      await postgres.stop()
      await haproxy.ups("postgres_server", [])
      assert.equal((await node.post("/auth/v1/token", account)).status, 503)
      await postgres.restart()
      await haproxy.ups("postgres_server", ["postgres1"])
      await until(async () => (await node.post("/auth/v1/token", account)).status === 200, "accounts are back", 10_000)
    } finally {
      await node?.stop()
      await haproxy.stop()
      await postgres.stop()
    }
  })
})
