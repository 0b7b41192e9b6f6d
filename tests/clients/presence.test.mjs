// One suite of presence for every dialect, and for all of them together, on one node and on two.

import assert from "node:assert/strict"
import { after, afterEach, before, describe, test } from "node:test"
import { startRedis } from "../phoenix/redis.mjs"
import { startNode, until, holds } from "../phoenix/server.mjs"
import { APPS, KINDS, endAll, fresh, join, same } from "./people.mjs"

const settings = { ...APPS, ROLLCALL_GRACE_SECONDS: "2" }

async function countIs(node, room, online, connections) {
  const read = async () => (await node.get(`/v1/channels/${encodeURIComponent(room)}/presence/count`)).json
  let last
  await until(async () => ((last = await read()), last.online === online && last.connections === connections), `${online} and ${connections} in ${room}`, 5000, () => last)
}

for (const nodes of [1, 2]) {
  for (const mix of [...KINDS.map((kind) => [kind]), KINDS]) {
    describe(`${mix.join(", ")} on ${nodes === 1 ? "one node" : "two nodes"}`, () => {
      let redis, a, b
      // The kinds take turns, and so do the nodes.
      const kind = (n) => mix[n % mix.length]
      const node = (n) => [a, b][n % 2]

      before(async () => {
        if (nodes === 1) return (a = b = await startNode(settings))
        redis = await startRedis()
        ;[a, b] = await Promise.all([1, 2].map(() => startNode({ ...settings, REDIS_URL: redis.url })))
      })
      afterEach(endAll)
      after(async () => {
        await Promise.all([a?.stop(), b !== a && b?.stop()])
        await redis?.stop()
      })

      test("who comes is seen by all, with what it shows, and who leaves is gone at once", async () => {
        const room = fresh()
        const people = []
        for (let n = 0; n < 4; n++) people.push(await join(kind(n), node(n), room, `u${n}`, { name: `U${n}` }))
        const all = people.map(({ user }) => user)
        for (const one of people) {
          await until(() => one.sees(...all), `${one.kind} sees all`, 5000, one.users)
          for (const [n, user] of all.entries()) assert.deepEqual(one.metas(user), [{ name: `U${n}` }], `${one.kind} sees what ${user} shows`)
        }
        await countIs(a, room, 4, 4)
        const began = Date.now()
        await people[0].leave()
        for (const one of people.slice(1)) await until(() => one.sees("u1", "u2", "u3"), `${one.kind} sees the leave`, 1500, one.users)
        assert(Date.now() - began < 1800, "a leave by word waits for no grace")
        await countIs(b, room, 3, 3)
      })

      test("two tabs of a user are one member, until the last is gone", async () => {
        const room = fresh()
        const watcher = await join(kind(1), node(1), room, "watcher")
        const [first, second] = [await join(kind(0), node(0), room, "ada"), await join(kind(2), node(1), room, "ada")]
        await until(() => watcher.sees("ada", "watcher"), "one member", 5000, watcher.users)
        await countIs(b, room, 2, 3)
        await first.leave()
        await holds(() => watcher.sees("ada", "watcher"), "the other tab is still there", 700)
        await countIs(a, room, 2, 2)
        await second.leave()
        await until(() => watcher.sees("watcher"), "the last tab is gone", 2000, watcher.users)
      })

      test("a connection that drops and comes back within the grace is seen by nobody", async () => {
        const room = fresh()
        const watcher = await join(kind(1), node(1), room, "watcher")
        const ada = await join(kind(0), node(0), room, "ada")
        await until(() => watcher.sees("ada", "watcher"), "both are there", 5000, watcher.users)
        ada.drop()
        await holds(() => watcher.sees("ada", "watcher"), "nobody sees a leave", 3500)
        await until(() => ada.sees("ada", "watcher"), "who came back sees all", 5000, ada.users)
        await countIs(a, room, 2, 2)
      })

      test("a page that is gone leaves after the grace", async () => {
        const room = fresh()
        const watcher = await join(kind(1), node(1), room, "watcher")
        const ada = await join(kind(0), node(0), room, "ada")
        await until(() => watcher.sees("ada", "watcher"), "both are there", 5000, watcher.users)
        ada.vanish()
        await until(() => watcher.sees("watcher"), "gone after the grace", 4000, watcher.users)
        await countIs(b, room, 1, 1)
      })

      test("a broadcast reaches all but its sender, whatever they speak", async () => {
        const room = fresh()
        const people = []
        for (let n = 0; n < 3; n++) people.push(await join(kind(n), node(n), room, `u${n}`))
        for (const sender of people) {
          const payload = { from: sender.user, nested: [1, { two: "é" }] }
          await sender.wave(payload)
          for (const one of people.filter((other) => other !== sender)) {
            await until(() => one.waves.some((wave) => same(wave, payload)), `${one.kind} hears ${sender.kind}`, 3000, () => one.waves)
          }
          assert(!sender.waves.some((wave) => same(wave, payload)), "not itself")
        }
        for (const one of people) assert.equal(one.waves.length, 2, "each once")
      })
    })
  }
}

test("kill -9 of a node takes its members away on the other, for every dialect, within 15 s", async () => {
  const redis = await startRedis()
  const [a, b] = await Promise.all([1, 2].map(() => startNode({ ...settings, REDIS_URL: redis.url })))
  try {
    const room = fresh()
    const staying = await Promise.all(KINDS.map((kind) => join(kind, a, room, `stays-${kind}`)))
    const going = await Promise.all(KINDS.map((kind) => join(kind, b, room, `goes-${kind}`)))
    const names = staying.map(({ user }) => user)
    for (const one of staying) await until(() => one.users().length === 6, `${one.kind} sees six`, 5000, one.users)
    going.forEach((one) => one.vanish())
    await b.stop("SIGKILL")
    const killed = Date.now()
    for (const one of staying) await until(() => one.sees(...names), `${one.kind} sees three`, 15_000 - (Date.now() - killed), one.users)
    await countIs(a, room, 3, 3)
  } finally {
    await endAll()
    await Promise.all([a.stop(), b.stop().catch(() => {})])
    await redis.stop()
  }
})
