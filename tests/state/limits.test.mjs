// Rate limits over several nodes: exact, by tier, told in headers; and without Redis each node by itself.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { startRedis } from "../phoenix/redis.mjs"
import { startNode } from "../phoenix/server.mjs"

const SERVICE_KEY = "a service key for tests"
const service = { Authorization: `Bearer ${SERVICE_KEY}` }
const bearer = (token) => ({ Authorization: `Bearer ${token}` })
const SETTINGS = {
  SERVICE_KEY,
  ROLLCALL_RATE_IP: "20",
  ROLLCALL_RATE_USER: "10",
  ROLLCALL_RATE_TIERS: "free:1,gold:3",
  ROLLCALL_TRUSTED_PROXIES: "127.0.0.0/8",
}
let last = 0
/** Headers of a client with an address of its own. */
const address = () => ({ "X-Forwarded-For": `198.51.100.${++last}` })
const CALL = "/v1/channels/room/presence/count"

describe("three nodes with one Redis", () => {
  let redis
  const nodes = []
  before(async () => {
    redis = await startRedis()
    for (let i = 0; i < 3; i++) nodes.push(await startNode({ ...SETTINGS, REDIS_URL: redis.url }))
  })
  after(async () => {
    await Promise.all(nodes.map((node) => node.stop()))
    await redis?.stop()
  })

  test("20 allowed means 20, asked of all at once", async () => {
    for (let round = 0; round < 3; round++) {
      const from = address()
      const answers = await Promise.all(Array.from({ length: 60 }, (_, i) => nodes[i % 3].get(CALL, from)))
      assert.equal(answers.filter((one) => one.status === 200).length, 20)
      assert.equal(answers.filter((one) => one.status === 429).length, 40)
    }
  })

  test("every answer tells what is left, and a refusal when to come back", async () => {
    const from = address()
    const allowed = await nodes[0].get(CALL, from)
    assert.match(allowed.headers.ratelimit, /^"address";r=19;t=(60|59)$/)
    assert.equal(allowed.headers["ratelimit-policy"], '"address";q=20;w=60')
    assert.equal(allowed.headers["retry-after"], undefined)
    for (let i = 0; i < 19; i++) await nodes[i % 3].get(CALL, from)
    const refused = await nodes[1].get(CALL, from)
    assert.equal(refused.status, 429)
    assert.match(refused.headers.ratelimit, /^"address";r=0;t=\d+$/)
    assert.equal(refused.headers["ratelimit-policy"], '"address";q=20;w=60')
    const wait = Number(refused.headers["retry-after"])
    assert.ok(wait > 50 && wait <= 60, wait)
    assert.equal(Number(/t=(\d+)/.exec(refused.headers.ratelimit)[1]), wait)
    // A socket is a call too.
    const socket = await nodes[2].get("/socket/websocket?vsn=2.0.0", {
      ...from, Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    })
    assert.deepEqual([socket.status, socket.headers["ratelimit-policy"]], [429, '"address";q=20;w=60'])
    assert.equal((await nodes[0].get(CALL, { ...from, ...service })).status, 200, "the service key is not limited")
  })

  test("a session carries its tier, which multiplies the user's limit on every node", async () => {
    const allowance = async (tier) => {
      const user_id = `user-${tier}`
      const { json } = await nodes[0].post("/v1/sessions", { user_id, tier }, service)
      let allowed = 0
      for (let i = 0; i < 40; i++) {
        const { status, headers } = await nodes[i % 3].get(CALL, { ...address(), ...bearer(json.access_token) })
        const factor = tier === "gold" ? 3 : 1
        assert.ok(headers["ratelimit-policy"].includes(`"user";q=${10 * factor};w=60`), headers["ratelimit-policy"])
        if (status === 200) allowed++
        else assert.equal(status, 429)
      }
      return allowed
    }
    assert.deepEqual([await allowance("gold"), await allowance("free"), await allowance("unknown")], [30, 10, 10])
    assert.deepEqual((await redis.keys("ratelimit:user:*")).sort().map((key) => key.slice(15)), ["user-free", "user-gold", "user-unknown"])
  })

  test("while Redis is away each node counts for itself", async () => {
    const from = address()
    await redis.kill()
    const answers = []
    for (let i = 0; i < 75; i++) answers.push(await nodes[i % 3].get(CALL, from))
    // An uncertain one a node: what it tried with Redis at the moment of its death.
    const allowed = answers.filter((one) => one.headers["ratelimit-policy"] && one.status !== 429).length
    assert.equal(allowed, 60)
    await redis.start()
  })
})
