// Redis goes away, comes back empty or with old things, is slow, or loses its subscribers. All nodes are
// hit alike, so nobody may be declared dead, and nobody on any node may see a leave or a join that was none.

import assert from "node:assert/strict"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import { describe, test } from "node:test"
import { inWorld, now, until } from "./world.mjs"

/** Redis is away for all nodes from `away` to `back`, at least `ms`, while people come and go. */
const outage = async (world, away, back, { ms = 0, steps = 40 } = {}) => {
  world.mark()
  const heal = world.truth.disturb()
  const gone = now()
  await away()
  await Promise.all(world.nodes.map((node) => world.operator(node, world.DEGRADED)))
  world.measure("an outage of Redis is said by every /readyz", now() - gone, 12_000)
  await world.churn.steps(steps)
  await until(() => now() - gone >= ms, `${ms} ms are over`, ms + 1000)
  await back()
  heal()
  const healed = now()
  await world.recover(healed)
  await Promise.all(world.nodes.map((node) => world.operator(node, world.HEALTHY)))
  await nobodyWasLost(world)
}

const nobodyWasLost = async (world) => {
  for (const node of world.nodes) {
    assert.equal(await world.metric(node, "nodes_lost"), 0, `${node.name} declared nobody dead`)
    assert.doesNotMatch(node.log(), /a node is gone/)
    assert.equal((await node.get("/healthz")).status, 200)
  }
}

describe("Redis fails", { concurrency: 4 }, () => {
  test(
    "unreachable for 20 s",
    inWorld({ nodes: 2, proxied: true }, async (world) => {
      const cut = () => world.nodes.forEach(({ proxy }) => proxy.cut())
      const heal = () => world.nodes.forEach(({ proxy }) => proxy.heal())
      await outage(world, cut, heal, { ms: 20_000 })
    }),
  )

  test(
    "killed and restarted empty",
    inWorld({ nodes: 3 }, (world) => outage(world, () => world.redis.kill(), () => world.redis.start())),
  )

  test(
    "killed and restarted empty at once",
    inWorld({ nodes: 3 }, async (world) => {
      world.mark()
      const heal = world.truth.disturb()
      await world.redis.restartEmpty()
      heal()
      await world.recover(now())
      await nobodyWasLost(world)
    }),
  )

  test("restarted from a snapshot that is older than now", async (t) => {
    const folder = await mkdtemp(path.join(tmpdir(), "rollcall-faults-"))
    const story = async (world) => {
      const [a, b, c] = world.nodes
      await world.redis.call("SAVE")
      // What the snapshot has and now has not: people, and a whole node.
      await world.kill(c)
      const forgotten = async () => !(await world.redis.call("SMEMBERS", "presence:nodes")).includes(c.id)
      await until(forgotten, "the dead node is cleaned up", world.truth.killed + 2000)
      await world.churn.steps(60)
      const heal = world.truth.disturb()
      world.mark()
      await world.redis.kill()
      await world.redis.start()
      heal()
      await world.recover(now())
      for (const node of [a, b]) await world.operator(node, { ready: { redis: "up" }, log: /Redis is there/ })
    }
    try {
      // Keys that outlive the story: what was saved is all there again.
      await inWorld({ nodes: 3, redis: { folder }, env: { ROLLCALL_PRESENCE_TTL_SECONDS: "30" } }, story)(t)
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  })

  test(
    "paused for 5 s",
    inWorld({ nodes: 3 }, (world) => outage(world, () => world.redis.freeze(), () => world.redis.thaw(), { ms: 5000, steps: 20 })),
  )

  test(
    "paused for longer than any key lives",
    inWorld({ nodes: 2 }, (world) => outage(world, () => world.redis.freeze(), () => world.redis.thaw(), { ms: 9000 })),
  )

  test("absent at the start, and coming later", async (t) => {
    const options = { nodes: 3, redis: { started: false }, shared: false }
    await inWorld(options, async (world) => {
      const heal = world.truth.disturb(null, { from: 0 })
      for (const node of world.nodes) await world.operator(node, world.DEGRADED)
      await world.churn.steps(20)
      await world.redis.start()
      heal()
      await world.recover(now())
      for (const node of world.nodes) await world.operator(node, world.HEALTHY)
      await nobodyWasLost(world)
    })(t)
  })

  test(
    "the subscribers' connections cut again and again",
    inWorld({ nodes: 3 }, async (world) => {
      world.mark()
      const before = await Promise.all(world.nodes.map((node) => world.metric(node, "redis_readings")))
      const heal = world.truth.disturb()
      for (let i = 0; i < 10; i++) {
        assert.ok((await world.redis.call("CLIENT", "KILL", "TYPE", "pubsub")) >= 0)
        await world.churn.steps(12)
      }
      const killed = await until(() => world.redis.call("CLIENT", "KILL", "TYPE", "pubsub"), "a last cut")
      assert.ok(killed >= 1)
      heal()
      await world.recover(now())
      for (const [i, node] of world.nodes.entries()) {
        await world.operator(node, { ...world.HEALTHY, metrics: { redis_up: 1, redis_readings: (count) => count >= before[i] + 10 } })
        assert.match(node.log().slice(node.logMark), /subscription_lost/)
      }
      await nobodyWasLost(world)
    }),
  )

  test(
    "FLUSHALL, three times",
    inWorld({ nodes: 3 }, async (world) => {
      world.mark()
      for (let i = 0; i < 3; i++) {
        const heal = world.truth.disturb()
        assert.equal(await world.redis.call("FLUSHALL"), "OK")
        heal()
        await world.recover(now())
      }
      for (const node of world.nodes) await world.operator(node, { ready: { redis: "up", degraded: false }, problems: ["lease_lost"], log: /lease_lost/ })
      await nobodyWasLost(world)
    }),
  )

  test(
    "slow: asleep for 1.5 s, again and again, and once for 4 s",
    inWorld({ nodes: 3, redis: { args: ["--enable-debug-command", "yes"] } }, async (world) => {
      world.mark()
      const heal = world.truth.disturb()
      for (const seconds of [1.5, 1.5, 1.5, 4]) {
        await world.redis.call("DEBUG", "SLEEP", seconds)
        await world.churn.steps(10)
      }
      heal()
      await world.recover(now())
      for (const node of world.nodes) await world.operator(node, world.HEALTHY)
      await nobodyWasLost(world)
    }),
  )
})
