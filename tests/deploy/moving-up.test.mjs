// The owner's migration, step by step, with users who stay throughout: one node from memory, then Redis and a second
// node, then Sentinel; HAProxy in front of all. What each step shows them is what README says.

import assert from "node:assert/strict"
import { after, test } from "node:test"
import { closeAll, counted, fresh, joinAs, until } from "../phoenix/client.mjs"
import { freePort, startNode } from "../phoenix/server.mjs"
import { PASSWORD, sentinelGroup } from "../redis/servers.mjs"
import { startHaproxy } from "./haproxy.mjs"

const SERVICE_KEY = "a service key for tests"
const service = { Authorization: `Bearer ${SERVICE_KEY}` }
const env = { SERVICE_KEY, ROLLCALL_TRUSTED_PROXIES: "127.0.0.1/32", ROLLCALL_GRACE_SECONDS: "5", ROLLCALL_NODE_TTL_SECONDS: "6" }
const nodes = []
let group, haproxy

after(async () => {
  await closeAll()
  await haproxy?.stop()
  await Promise.all(nodes.map((node) => node.stop("SIGKILL")))
  await group?.stop()
})

/** Stops node `at` and starts it again on its port with other settings, as a deploy does. */
async function again(at, more) {
  const { port } = nodes[at]
  const { code } = await nodes[at].stop()
  assert.equal(code, 0)
  nodes[at] = await startNode({ ...env, ...more }, port)
  await until(async () => (await nodes[at].get("/readyz")).json.problems.length === 0, "it is ready and nothing is wrong", 10_000)
}

test("from one node to two with Redis, and to Sentinel: what users notice at each step", async (t) => {
  group = await sentinelGroup()
  const plain = `redis://:${encodeURIComponent(PASSWORD)}@127.0.0.1:${group.first.port}`
  const room = fresh()
  const names = ["ada", "bob", "cyd", "dan"]

  // One node, everything in memory.
  const second = await freePort()
  nodes.push(await startNode(env))
  haproxy = await startHaproxy({ nodes: [nodes[0], { port: second }] })
  await haproxy.ups("nodes", ["node1"])
  assert.equal((await nodes[0].get("/readyz")).json.redis, "off")
  const users = []
  for (const user of names) users.push(await joinAs(haproxy, room, user, { resume: `${user} has a key` }))
  for (const me of users) await until(() => me.sees(...names), "all see all")
  const { json: old } = await nodes[0].post("/v1/sessions", { user_id: "ada" }, service)

  // REDIS_URL is set: a restart, after which everybody is back by himself. Sessions kept in memory are gone.
  let began = Date.now()
  await again(0, { REDIS_URL: plain })
  for (const me of users) await until(() => me.states.length > 1 && me.sees(...names), "all are back", 15_000, me.users)
  t.diagnostic(`with Redis: all are back ${Date.now() - began} ms after the old node was told to stop`)
  assert.deepEqual(users.map((me) => me.closes[0]), [1012, 1012, 1012, 1012], "told to come back")
  assert.equal((await nodes[0].get("/auth/v1/user", { Authorization: `Bearer ${old.access_token}` })).status, 401)
  const { json: kept } = await nodes[0].post("/v1/sessions", { user_id: "ada" }, service)

  // A second node: nobody notices, but those on it see everybody and are seen.
  const watched = users.map((me) => ({ me, states: me.states.length, diffs: me.diffs.length, closes: me.closes.length }))
  nodes.push(await startNode({ ...env, REDIS_URL: plain }, second))
  await haproxy.ups("nodes", ["node1", "node2"])
  assert.ok(watched.every(({ me, states, diffs, closes }) => me.states.length === states && me.diffs.length === diffs && me.closes.length === closes))
  for (const user of ["eve", "fay"]) {
    users.push(await joinAs(haproxy, room, user, { resume: `${user} has a key` }))
    names.push(user)
  }
  for (const me of users) await until(() => me.sees(...names), "both nodes show the same", 3000, me.users)

  // Sentinel: one node after the other. Those who stay see nobody leave.
  const url = { REDIS_URL: group.url }
  const leaves = (me) => me.diffs.filter((diff) => names.some((name) => diff.leaves[name] && !diff.joins[name])).length
  const watchers = []
  for (const at of [0, 1]) {
    // One who watches from the node that stays.
    const watcher = await joinAs(nodes[1 - at], room, undefined, { observe: true })
    watchers.push(watcher)
    began = Date.now()
    await again(at, url)
    await haproxy.ups("nodes", ["node1", "node2"])
    for (const me of users) await until(() => me.sees(...names), "all are there", 15_000, me.users)
    for (const node of nodes) await counted(node, room, names.length, names.length, 10_000)
    t.diagnostic(`node ${at + 1} with Sentinel: ${Date.now() - began} ms`)
    assert.equal(leaves(watcher), 0, "nobody was seen to leave")
    watcher.close()
  }
  for (const node of nodes) {
    const whoami = await node.get("/auth/v1/user", { Authorization: `Bearer ${kept.access_token}` })
    assert.equal(whoami.json.id, "ada", "sessions outlive every node from now on")
  }

  // The primary dies: the replica takes over, and nobody is seen to leave.
  const seen = users.map(leaves)
  began = Date.now()
  await group.first.kill()
  await group.named(group.second)
  for (const node of nodes) {
    await until(async () => (await node.get("/readyz")).json.redis === "up", "Redis is back", 20_000)
  }
  users.push(await joinAs(haproxy, room, "gus"))
  names.push("gus")
  for (const me of users) await until(() => me.sees(...names), "all see the newcomer", 15_000, me.users)
  t.diagnostic(`failover: shared again after ${Date.now() - began} ms`)
  assert.deepEqual(users.slice(0, -1).map(leaves), seen)
})
