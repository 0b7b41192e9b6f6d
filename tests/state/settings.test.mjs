// Settings of the project and of channels, and the cache they are read through: two nodes, one database, one Redis.

import assert from "node:assert/strict"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { closeAll, connectRaw, counted, fresh, joinAs } from "../phoenix/client.mjs"
import { startRedis } from "../phoenix/redis.mjs"
import { request, startNode, until } from "../phoenix/server.mjs"

const SERVICE_KEY = "a service key for tests"
const service = { Authorization: `Bearer ${SERVICE_KEY}` }
const enc = encodeURIComponent
const folder = mkdtempSync(path.join(tmpdir(), "rollcall-settings-"))
process.on("exit", () => rmSync(folder, { recursive: true, force: true }))

const metric = async (node, line) => {
  const found = (await node.get("/metrics")).text.split("\n").find((one) => one.startsWith(`${line} `))
  return Number(found?.split(" ")[1] ?? 0)
}

describe("settings", () => {
  let redis
  const nodes = []
  before(async () => {
    redis = await startRedis()
    const env = { SERVICE_KEY, REDIS_URL: redis.url, DATABASE_URL: `sqlite:${path.join(folder, "s.db")}` }
    for (let i = 0; i < 2; i++) nodes.push(await startNode(env))
  })
  after(async () => {
    await closeAll()
    await Promise.all(nodes.map((node) => node.stop()))
    await redis?.stop()
  })
  const put = (target, body, node = 0) => request(nodes[node].port, "PUT", target, { body, headers: service })
  const of = (room) => `/v1/channels/${enc(room)}/settings`
  const join = async (node, room, user, query = {}, more = {}) => {
    const raw = await connectRaw(node, { query: { vsn: "2.0.0", ...query } })
    return raw.join(room, { user_id: user, ...more })
  }
  /** Whether `room` is closed to whoever proves nothing; nobody becomes present by trying. */
  const isClosed = async (node, room) => (await join(node, room, "eve", {}, { observe: true })).status === "error"

  test("a limit of members that is set on one node holds on the other within a second", async () => {
    const room = fresh()
    assert.equal((await put(of(room), { max_members: 2 })).status, 204)
    const read = await nodes[1].get(of(room), service)
    assert.deepEqual(read.json, { channel: room, settings: { max_members: 2 }, effective: { max_members: 2 } })
    await joinAs(nodes[0], room, "a")
    await joinAs(nodes[1], room, "b")
    await counted(nodes[0], room, 2)
    await counted(nodes[1], room, 2)
    for (const node of nodes) {
      const { status, response } = await join(node, room, "c")
      assert.deepEqual([status, response.reason], ["error", "channel has its 2 members"])
    }
    assert.equal((await put(of(room), { max_members: 3 }, 1)).status, 204)
    await until(async () => (await join(nodes[0], room, "c")).status === "ok", "there is room for one more", 1000)
  })

  test("a channel for sessions only lets nobody else in, also in open mode", async () => {
    const room = fresh()
    await put(of(room), { join_needs_session: true })
    await until(() => isClosed(nodes[1], room), "it is closed", 1000)
    assert.equal((await join(nodes[1], room, "eve")).response.reason, "channel needs a session")
    const { json } = await nodes[0].post("/v1/sessions", { user_id: "ada" }, service)
    assert.equal((await join(nodes[1], room, "eve", { token: json.access_token })).status, "ok")
    const { json: members } = await nodes[1].get(`/v1/channels/${enc(room)}/presence`)
    assert.deepEqual(members.members.map((one) => one.user), ["ada"])
    // What the project says holds for all that do not say otherwise.
    await put("/v1/settings", { join_needs_session: true })
    const open = fresh()
    await put(of(open), { join_needs_session: false })
    await until(() => isClosed(nodes[1], fresh()), "all are closed", 1000)
    assert.equal((await join(nodes[1], open, "eve")).status, "ok")
    assert.deepEqual((await nodes[1].get("/v1/settings", service)).json.project, { join_needs_session: true })
    await put("/v1/settings", {})
    assert.equal((await request(nodes[0].port, "DELETE", of(room), { headers: service })).status, 204)
    await until(async () => (await join(nodes[1], room, "eve")).status === "ok", "it is open", 1000)
  })

  test("the database is asked once, Redis now and then, this process mostly", async () => {
    const loads = 'rollcall_cache_loads_total{namespace="settings"}'
    const hits = 'rollcall_cache_hits_total{namespace="settings",tier="l1"}'
    await join(nodes[0], fresh(), "warm")
    const [before, found] = [await metric(nodes[0], loads), await metric(nodes[0], hits)]
    const raw = await connectRaw(nodes[0])
    for (let i = 0; i < 50; i++) await raw.join(fresh(), { user_id: "ada" })
    assert.equal(await metric(nodes[0], loads), before)
    // Joins ask nobody; the node looks by itself.
    await until(async () => (await metric(nodes[0], hits)) >= found + 3, "L1 is looked into", 5000)
    assert.match(await redis.call("GET", "cache:settings:v1:all"), /^\{"project"/)
    assert.ok((await redis.call("TTL", "cache:settings:v1:all")) > 3000)
  })

  test("without Redis what is known goes on to hold, a change fails and says so, and then all is well", async () => {
    const room = fresh()
    await put(of(room), { join_needs_session: true })
    await until(() => isClosed(nodes[1], room), "it is closed", 1000)
    await redis.kill()
    assert.equal((await join(nodes[1], room, "eve")).status, "error")
    const changed = await put(of(room), { join_needs_session: false })
    assert.equal(changed.status, 503)
    assert.match(changed.json.detail, /^stored; other nodes may take a while to follow/)
    await redis.start()
    await until(async () => (await join(nodes[1], room, "eve")).status === "ok", "the change has come through", 10_000)
  })

  test("a closed channel stays closed while nobody can be asked, and joins wait for nobody", async () => {
    const [closed, open] = [fresh(), fresh()]
    await put(of(closed), { join_needs_session: true })
    await until(() => isClosed(nodes[1], closed), "it is closed", 1000)
    await redis.kill()
    const end = Date.now() + 4000
    while (Date.now() < end) {
      const began = performance.now()
      assert.equal((await join(nodes[1], closed, "eve")).response.reason, "channel needs a session")
      assert.equal((await join(nodes[1], open, "eve")).status, "ok")
      assert.ok(performance.now() - began < 1000)
    }
    await redis.start()
    // One that has never seen them cannot know which are closed.
    const blind = await startNode({ SERVICE_KEY, DATABASE_URL: "postgres://nobody@127.0.0.1:1/none" })
    assert.equal((await join(blind, open, "eve")).response.reason, "settings are not known yet; try again")
    const { json } = await blind.post("/v1/sessions", { user_id: "ada" }, service)
    assert.equal((await join(blind, open, "ada", { token: json.access_token })).status, "ok")
    await blind.stop()
  })

  test("bad settings are refused, and only backends may set any", async () => {
    const room = fresh()
    for (const wrong of [{ max_member: 1 }, { max_members: -1 }, { max_members: "2" }, "[]", "{"]) {
      assert.equal((await put(of(room), wrong)).status, 400, JSON.stringify(wrong))
    }
    assert.equal((await request(nodes[0].port, "PUT", of(room), { body: {} })).status, 401)
    const none = await startNode({ SERVICE_KEY })
    assert.equal((await none.get("/v1/settings", service)).status, 501)
    await none.stop()
  })
})
