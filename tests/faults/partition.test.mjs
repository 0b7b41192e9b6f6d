// One node of three loses its way to Redis, in several ways. The others may say goodbye for it once its
// lease is over, and it comes back with joins; its own people see nobody leave who stayed.

import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { inWorld, now, until } from "./world.mjs"

/** `fault` hits the way of the last node, for longer than its lease; then it heals. */
const partition = (fault) =>
  inWorld({ nodes: 3, proxied: true }, async (world) => {
    const [a, b, c] = world.nodes
    world.mark()
    const heal = [world.truth.disturb([c]), world.truth.excuse(c)]
    const begun = now()
    fault(c.proxy)
    await world.operator(c, world.DEGRADED)
    const lost = async () => (await Promise.all([a, b].map((node) => world.metric(node, "nodes_lost")))).some((count) => count >= 1)
    await until(lost, "a survivor counts the lost node", world.truth.killed + 2000)
    const theirs = world.observers.filter(({ node }) => node !== c).flatMap(({ views }) => views)
    const tags = world.stayers.filter(({ node }) => node === c).flatMap(({ seats }) => seats.map(({ tag }) => tag))
    await until(() => theirs.every((view) => tags.every((tag) => !view.tags()[tag])), "goodbye for all of them", 3000)
    world.measure("G4 the members of a node cut off from Redis, to the others", now() - begun, world.truth.killed)
    for (const node of [a, b]) await world.operator(node, { ready: { redis: "up", degraded: false }, metrics: { nodes: 2 } })
    await world.churn.steps(40)
    c.proxy.heal()
    heal.forEach((one) => one())
    const healed = now()
    await world.recover(healed)
    await world.operator(c, world.HEALTHY)
    for (const node of [a, b]) await world.operator(node, { metrics: { nodes: 3 }, log: /nodes are back/ })
    // It knew better than to call the others dead.
    assert.equal(await world.metric(c, "nodes_lost"), 0)
  })

describe("a partition between one node and Redis", { concurrency: 3 }, () => {
  test("a black hole: nothing arrives, nothing is closed", partition((proxy) => proxy.blackHole()))
  test("a hard cut", partition((proxy) => proxy.cut()))
  test("asymmetric: only the answers are lost", partition((proxy) => proxy.loseAnswers()))

  test(
    "a black hole that is shorter than the lease: nobody notices",
    inWorld({ nodes: 3, proxied: true }, async (world) => {
      const c = world.nodes.at(-1)
      const heal = world.truth.disturb([c])
      for (let i = 0; i < 3; i++) {
        c.proxy.blackHole()
        await world.churn.steps(20)
        c.proxy.heal()
        await world.churn.steps(20)
      }
      heal()
      await world.recover(now())
      for (const node of world.nodes) assert.equal(await world.metric(node, "nodes_lost"), 0)
    }),
  )

  test(
    "answers 300 ms late for one node: it is slow, and right",
    inWorld({ nodes: 3, proxied: true }, async (world) => {
      const c = world.nodes.at(-1)
      c.proxy.delay(150)
      // What waits for the answer to what was sent before it arrives after one way and a half, or more.
      world.truth.hearing = 300 + 600
      await world.churn.steps(120)
      await world.operator(c, { ready: { redis: "up", degraded: false }, metrics: { redis_up: 1 } })
      await world.churn.stop()
      await world.settle()
      for (const node of world.nodes) assert.equal(await world.metric(node, "nodes_lost"), 0)
    }),
  )

  test(
    "600 ms late for one node: news may be late, but none are false, and nobody is thought dead",
    inWorld({ nodes: 3, proxied: true }, async (world) => {
      const c = world.nodes.at(-1)
      const heal = world.truth.disturb([c])
      c.proxy.delay(300)
      await world.churn.steps(120)
      await world.churn.stop()
      await world.settle()
      c.proxy.heal()
      heal()
      await world.recover(now())
      for (const node of world.nodes) assert.equal(await world.metric(node, "nodes_lost"), 0)
    }),
  )
})
