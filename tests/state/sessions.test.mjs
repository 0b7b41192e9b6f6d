// Sessions over several nodes: valid while their maker is down, revoked everywhere within a second, and what becomes of
// open sockets.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { closeAll, connectRaw, fresh } from "../phoenix/client.mjs"
import { startRedis } from "../phoenix/redis.mjs"
import { startNode, until } from "../phoenix/server.mjs"
import { startProxy } from "../faults/proxy.mjs"

const SERVICE_KEY = "a service key for tests"
const service = { Authorization: `Bearer ${SERVICE_KEY}` }
const bearer = (token) => ({ Authorization: `Bearer ${token}` })

const metric = async (node, line) => {
  const found = (await node.get("/metrics")).text.split("\n").find((one) => one.startsWith(`${line} `))
  return Number(found?.split(" ")[1] ?? 0)
}

describe("sessions on three nodes", () => {
  let redis
  let proxy
  const nodes = []
  const env = () => ({ SERVICE_KEY, ROLLCALL_AUTH: "session", REDIS_URL: redis.url })
  before(async () => {
    redis = await startRedis()
    proxy = await startProxy(redis.port)
    nodes.push(await startNode(env()), await startNode(env()))
    nodes.push(await startNode({ ...env(), REDIS_URL: `redis://127.0.0.1:${proxy.port}` }))
  })
  after(async () => {
    await closeAll()
    await Promise.all(nodes.map((node) => node.stop()))
    proxy?.close()
    await redis?.stop()
  })
  const made = async (node, user_id, more = {}) =>
    (await node.post("/v1/sessions", { user_id, ...more }, service)).json.access_token
  const knows = async (node, token) => (await node.get("/auth/v1/user", bearer(token))).status === 200

  test("a session is valid on any node while the one that made it is down", async () => {
    const maker = await startNode(env())
    const token = await made(maker, "ada")
    await maker.stop("SIGKILL")
    for (const node of nodes) assert.equal(await knows(node, token), true)
    assert.equal((await redis.keys(`session:${token}`)).length, 1)
  })

  test("a revoked session is refused by every node within a second, and its sockets close with 1008", async () => {
    for (let round = 0; round < 5; round++) {
      const token = await made(nodes[0], "ada")
      const sockets = await Promise.all(nodes.map((node) => connectRaw(node, { query: { vsn: "2.0.0", token } })))
      for (const socket of sockets) assert.equal((await socket.join(fresh(), {})).status, "ok")
      for (const node of nodes) assert.equal(await knows(node, token), true)
      const at = performance.now()
      assert.equal((await nodes[1].request("DELETE", `/v1/sessions/${token}`, { headers: service })).status, 204)
      await Promise.all(nodes.map((node) => until(async () => !(await knows(node, token)), "it is refused", 1000)))
      await Promise.all(sockets.map((socket) => until(() => socket.ended, "its socket closes", 1000)))
      assert.ok(performance.now() - at < 1000)
      assert.deepEqual(sockets.map((socket) => socket.ended.code), [1008, 1008, 1008])
    }
  })

  test("an L1 whose subscription is silently dead does not believe for longer than a second", async () => {
    const token = await made(nodes[0], "eve")
    const before = await metric(nodes[1], 'rollcall_cache_hits_total{namespace="session",tier="l1"}')
    assert.equal(await knows(nodes[1], token), true)
    for (let i = 0; i < 3; i++) assert.equal(await knows(nodes[1], token), true)
    assert.ok((await metric(nodes[1], 'rollcall_cache_hits_total{namespace="session",tier="l1"}')) >= before + 3, "it was in L1")
    // Revoked behind everybody's back: the key is gone, and nobody announces it.
    await redis.call("CLIENT", "PAUSE", "1", "WRITE")
    await redis.call("DEL", `session:${token}`)
    await redis.call("CLIENT", "KILL", "TYPE", "pubsub")
    await until(async () => !(await knows(nodes[1], token)), "it is refused", 1000)
  })

  test("a node cut off from Redis goes on with those it knows for ten seconds, and says it cannot know others", async () => {
    const [known, unknown] = [await made(nodes[0], "ada"), await made(nodes[0], "bob")]
    assert.equal(await knows(nodes[2], known), true)
    proxy.cut()
    await until(async () => (await nodes[2].get("/auth/v1/user", bearer(unknown))).status === 503, "it cannot know", 5000)
    assert.equal(await knows(nodes[2], known), true)
    await until(async () => (await nodes[2].get("/auth/v1/user", bearer(known))).status === 503, "nor for ever", 11_000)
    proxy.heal()
    await until(async () => knows(nodes[2], unknown), "it is back", 10_000)
  })

  test("tokens that were never given out are refused without asking Redis, and no valid one is", async () => {
    const trusted = () => Promise.all(nodes.slice(0, 2).map((node) => metric(node, "rollcall_session_filter_trusted")))
    await until(async () => (await trusted()).join() === "1,1", "the filter is complete", 30_000, trusted)
    const misses = 'rollcall_cache_misses_total{namespace="session",tier="l2"}'
    const before = await metric(nodes[1], misses)
    for (let i = 0; i < 200; i++) {
      const token = await made(nodes[0], `u${i}`)
      assert.equal(await knows(nodes[1], token), true)
      const wrong = token.slice(0, -6) + "AAAAAA"
      assert.equal(await knows(nodes[1], wrong), false)
    }
    assert.ok((await metric(nodes[1], misses)) - before <= 2, "Redis was asked for wrong ones")
    assert.ok((await metric(nodes[1], "rollcall_session_filter_refusals_total")) >= 198)
  })

  test("sessions slide: use extends them, and what is not used ends", async () => {
    const [used, unused] = [await made(nodes[0], "ada", { ttl_seconds: 2 }), await made(nodes[0], "bob", { ttl_seconds: 2 })]
    const end = Date.now() + 3500
    while (Date.now() < end) {
      assert.equal(await knows(nodes[1], used), true)
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
    assert.deepEqual([await knows(nodes[1], used), await knows(nodes[1], unused)], [true, false])
  })
})
