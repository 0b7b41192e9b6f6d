// What the tests of all kinds of Redis look at.

import assert from "node:assert/strict"
import { joinAs, same, until } from "../phoenix/client.mjs"

/** What a node says of itself, with the HTTP status. */
export const ready = async (node) => {
  const { status, json } = await node.get("/readyz")
  return { http: status, status: json.status, redis: json.redis, degraded: json.degraded }
}
const HEALTHY = { http: 200, status: "ready", redis: "up", degraded: false }
export const healthy = (node, ms = 30_000) =>
  until(async () => same(await ready(node), HEALTHY), "the node is healthy", ms, async () => ({ ...(await ready(node)), log: node.log().slice(-2000) }))

/** As the documents say: these characters are percent-encoded inside keys. */
export const enc = (name) => name.replace(/[%:{}\u0000-\u001f\u007f]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`)

/** One observer on each node, each seeing all. */
export async function observers(nodes, room) {
  const all = []
  for (const [i, node] of nodes.entries()) all.push(await joinAs(node, room, `watcher ${i}`))
  const names = nodes.map((_, i) => `watcher ${i}`)
  for (const me of all) await until(() => names.every((name) => me.users().includes(name)), "observers see each other", 10_000, me.users)
  return all
}

/** Everybody in `users` came once and never went, as each observer was told; and no socket was closed. */
export function undisturbed(all, users) {
  for (const me of all) {
    for (const user of users) assert.deepEqual(me.ledger.of(user), [`${user} came`], "nobody was seen to leave")
    assert.deepEqual(me.closes, [])
  }
}

/** How long until all observers see `users`, in milliseconds. */
export async function seen(all, users, ms) {
  const began = Date.now()
  for (const me of all) {
    await until(() => users.every((user) => me.users().includes(user)), `${users} is seen`, ms, me.users)
  }
  return Date.now() - began
}
