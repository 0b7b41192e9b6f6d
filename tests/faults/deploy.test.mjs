// Nodes that are stopped on purpose: people are told to go elsewhere, and nobody is seen to leave who
// comes back in time.

import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { inWorld, now, until } from "./world.mjs"

/** SIGTERM, and what must be true when the node has ended. */
const stopped = async (world, node) => {
  const { code, signal, ms } = await world.term(node)
  assert.deepEqual({ code, signal }, { code: 0, signal: null }, node.log())
  world.measure("a node drains and ends", ms, 10_000)
  const log = node.log()
  assert.ok(log.indexOf("draining") < log.indexOf("stopped") && log.includes("draining"), log)
  assert.equal(await world.redis.call("EXISTS", `presence:node:${node.id}`, `presence:node:${node.id}:channels`), 0, "it has given its lease back")
  assert.ok(!(await world.redis.call("SMEMBERS", "presence:nodes")).includes(node.id), "and is off the list")
}

/** Everybody with a real client has been told by 1012, and has come back elsewhere. */
const cameBack = async (world, old) => {
  for (const visitor of world.stayers) {
    for (const { code, node } of visitor.closes) if (old.includes(node)) assert.equal(code, 1012, `${visitor.id} was closed with`)
  }
  const real = world.stayers.filter((visitor) => visitor.real)
  await until(() => real.every(({ seats: [{ span }] }) => span.acked && !span.ended && !old.includes(span.node)), "all who stay are back", 5000)
  for (const node of world.nodes) assert.equal(await world.metric(node, "nodes_lost"), 0, "nobody was thought dead")
}

describe("a node is stopped on purpose", { concurrency: 3 }, () => {
  test(
    "rolling restart of three nodes under churn",
    inWorld({ nodes: 3 }, async (world) => {
      const old = [...world.nodes]
      for (const node of old) {
        await stopped(world, node)
        await world.addNode(world.nodes.length, { observed: true })
        await world.churn.steps(10)
      }
      await cameBack(world, old)
      await world.churn.stop()
      await world.settle()
    }),
  )

  test(
    "rolling deploy of two nodes: the new ones first",
    inWorld({ nodes: 2 }, async (world) => {
      const old = [...world.nodes]
      for (const node of old) {
        await world.addNode(world.nodes.length, { observed: true })
        await stopped(world, node)
      }
      await cameBack(world, old)
      await world.churn.stop()
      await world.settle()
    }),
  )

  test(
    "SIGTERM under load: 1012 to everybody, no ghost, no lease left",
    inWorld({ nodes: 2 }, async (world) => {
      const [, b] = world.nodes
      const load = Array.from({ length: 300 }, (_, i) => world.visitor({ id: `load-${i}`, user: `load ${i % 150}`, node: b, channels: [world.channels[i % 2]] }))
      for (let i = 0; i < load.length; i += 50) await Promise.all(load.slice(i, i + 50).map((one) => one.enter()))
      await until(() => load.every(({ stage }) => stage === "in"), "all are in", 10_000)
      await world.churn.stop()
      await world.settle({ what: "under load", ms: 10_000 })
      world.churn.start()
      const ending = stopped(world, b)
      await world.operator(b, { ready: { http: 503, status: "draining" }, problems: ["draining"], log: /draining/ }, 2000)
      await ending
      const codes = load.flatMap(({ closes }) => closes.map(({ code }) => code))
      assert.deepEqual([codes.length, ...new Set(codes)], [300, 1012])
      const at = load.map(({ closes: [close] }) => close.at).sort((x, y) => x - y)
      world.measure("sockets are told to go over this time", at.at(-1) - at[0], 4000)
      await world.churn.stop()
      await world.settle()
    }),
  )

  test(
    "a second SIGTERM ends at once; the others notice by the lease",
    inWorld({ nodes: 2 }, async (world) => {
      const [a, b] = world.nodes
      world.mark()
      b.draining = true
      process.kill(b.pid, "SIGTERM")
      await until(() => b.log().includes("draining"), "it drains")
      b.killedAt = now()
      world.truth.died(b)
      const { code, ms } = await b.stop("SIGTERM")
      world.retire(b)
      assert.equal(code, 1)
      world.measure("a second SIGTERM ends the node", ms, 1000)
      assert.match(b.log(), /asked to stop twice: ending at once/)
      await world.operator(a, { metrics: { nodes_lost: 1 }, log: /a node is gone/ })
      await world.churn.stop()
      await world.settle()
    }),
  )

  test(
    "SIGTERM while Redis is away: it ends all the same",
    inWorld({ nodes: 2, proxied: true }, async (world) => {
      const [a, b] = world.nodes
      const heal = [world.truth.disturb([b]), world.truth.excuse(b)]
      world.mark()
      b.proxy.blackHole()
      await world.operator(b, world.DEGRADED)
      // As good as killed, to the others: they see it by the lease.
      const { code, ms } = await world.term(b)
      assert.equal(code, 0)
      world.measure("a node without Redis drains and ends", ms, 10_000)
      heal.forEach((one) => one())
      await world.operator(a, { metrics: { nodes_lost: 1, nodes: 1 } })
      await world.churn.stop()
      await world.settle()
    }),
  )
})
