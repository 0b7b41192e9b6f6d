// Nodes that die, and nodes that only look dead.

import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { startProxy } from "./proxy.mjs"
import { DEFAULTS, inWorld, now, until } from "./world.mjs"

/** One of the survivors has noticed the death itself, and says so; it tells the others. */
const declareDead = async (world, survivors, killed) => {
  const left = () => world.truth.killed - (now() - killed) + 2000
  const lost = async () => (await Promise.all(survivors.map((node) => world.metric(node, "nodes_lost")))).some((count) => count >= 1)
  await until(lost, "a survivor counts the lost node", left())
  const judge = await until(() => survivors.find((node) => /a node is gone/.test(node.log().slice(node.logMark))), "and logs it", left())
  await world.operator(judge, { problems: ["node_gone"], log: /node_gone/ })
  for (const node of survivors) await world.operator(node, { ready: { http: 200, redis: "up", degraded: false }, metrics: { nodes: survivors.length } }, left())
}

describe("a node dies or looks dead", { concurrency: 3 }, () => {
  test(
    "a client whose cable is pulled",
    inWorld({ nodes: 2, env: { ROLLCALL_SILENCE_SECONDS: "10", ROLLCALL_PING_SECONDS: "3" } }, async (world) => {
      const [a] = world.nodes
      const proxy = await startProxy(a.port)
      try {
        const quiet = world.visitor({ id: "quiet", user: "quiet", node: a, channels: world.channels, port: proxy.port })
        await quiet.enter()
        await until(() => quiet.stage === "in" && quiet.seats.every(({ span }) => span.acked), "it is in")
        await world.churn.stop()
        await world.settle({ what: "with the quiet one" })
        proxy.blackHole()
        for (const { span } of quiet.seats) world.truth.end(span, "silent")
        // The server will close its socket: that much is asked for.
        quiet.stage = "gone"
        const gone = () => world.observers.flatMap(({ views }) => views).every((view) => !view.tags()["quiet.1"])
        await until(gone, "it is gone", 15_000)
        await world.operator(a, { metrics: { silent_sockets: 1 } })
        await world.settle()
      } finally {
        proxy.close()
      }
    }),
  )

  test(
    "kill -9 under churn",
    inWorld({ nodes: 3 }, async (world) => {
      const [a, b, c] = world.nodes
      world.mark()
      const killed = now()
      await world.kill(c)
      await declareDead(world, [a, b], killed)
      await world.churn.steps(40)
      await world.churn.stop()
      await world.settle()
    }),
  )

  test(
    "kill -9 with the default times: 15 s",
    inWorld({ nodes: 3, env: DEFAULTS }, async (world) => {
      assert.equal(world.truth.killed, 15_000)
      const [a, b, c] = world.nodes
      world.mark()
      const killed = now()
      await world.kill(c)
      await declareDead(world, [a, b], killed)
      await world.churn.stop()
      await world.settle()
    }),
  )

  test(
    "two of three nodes killed at once",
    inWorld({ nodes: 3 }, async (world) => {
      const [a, b, c] = world.nodes
      world.mark()
      const killed = now()
      await Promise.all([world.kill(b), world.kill(c)])
      await world.operator(a, { metrics: { nodes_lost: 2, nodes: 1 } }, world.truth.killed - (now() - killed) + 2000)
      await world.churn.steps(20)
      await world.churn.stop()
      await world.settle()
    }),
  )

  test(
    "who came back from a killed node and left keeps nobody's grace waiting",
    inWorld({ nodes: 3, churn: false, env: DEFAULTS }, async (world) => {
      const [a, , c] = world.nodes
      const [channel] = world.channels
      const moves = world.visitor({ id: "moves", user: "moves", node: c, channels: [channel], real: true, keyed: true })
      const drops = world.visitor({ id: "drops", user: "drops", node: a, channels: [channel] })
      await Promise.all([moves.enter(), drops.enter()])
      await until(() => drops.stage === "in" && moves.stage === "in", "both are in")
      await world.settle({ what: "with both" })
      await world.kill(c)
      await until(() => moves.seats[0].span.acked && !moves.seats[0].span.ended, "it is back")
      // Its older seat is on the dead node, and is remembered for a while, so that it does not show again.
      moves.leave()
      await until(() => world.views().every((view) => !view.isOpen() || !view.tags()[moves.seats[0].tag]), "it has left", 1000)
      drops.drop()
      await until(() => world.views().every((view) => !view.isOpen() || !view.tags()[drops.seats[0].tag]), "the other has gone too", 10_000)
      await world.settle({ ms: world.truth.killed })
    }),
  )

  test(
    "a killed node whose list of channels Redis has lost is cleaned up all the same",
    inWorld({ nodes: 3, churn: false }, async (world) => {
      const [, , c] = world.nodes
      // As after a snapshot is restored in which that list had expired, and what others keep alive had not.
      await world.kill(c)
      await world.redis.call("DEL", `presence:node:${c.id}:channels`)
      await world.settle({ ms: world.truth.killed + world.presenceTtl })
    }),
  )

  test(
    "SIGSTOP for longer than the lease, then SIGCONT",
    inWorld({ nodes: 3 }, async (world) => {
      const [a, b, c] = world.nodes
      world.mark()
      const heal = [world.truth.disturb([c], { self: true }), world.truth.excuse(c)]
      c.stopped = true
      const stopped = now()
      process.kill(c.pid, "SIGSTOP")
      await declareDead(world, [a, b], stopped)
      // The others have said goodbye for everyone on it.
      const theirs = world.observers.filter(({ node }) => node !== c).flatMap(({ views }) => views)
      const tags = world.stayers.filter(({ node }) => node === c).flatMap(({ seats }) => seats.map(({ tag }) => tag))
      await until(() => theirs.every((view) => tags.every((tag) => !view.tags()[tag])), "goodbye for all of them", 2000)
      world.measure("G4 a stopped node's members, to the others", now() - stopped, world.truth.killed)
      await world.churn.steps(40)
      process.kill(c.pid, "SIGCONT")
      c.stopped = false
      heal.forEach((one) => one())
      const healed = now()
      // What it finds first: that its lease is gone, or that an answer it waited for when it was stopped is overdue.
      await world.operator(c, { ready: { http: 200, redis: "up" }, log: /lease_lost|redis_away/ })
      if (!/redis_away/.test(c.log().slice(c.logMark))) await world.operator(c, { problems: ["lease_lost"] })
      for (const node of [a, b]) await world.operator(node, { metrics: { nodes: 3 }, log: /nodes are back/ })
      await world.churn.stop()
      await world.settle({ since: healed })
    }),
  )

  test(
    "SIGSTOP for less than the lease: nobody notices",
    inWorld({ nodes: 2 }, async (world) => {
      const [, b] = world.nodes
      const heal = world.truth.disturb([b], { self: true })
      b.stopped = true
      process.kill(b.pid, "SIGSTOP")
      await world.churn.steps(20)
      process.kill(b.pid, "SIGCONT")
      b.stopped = false
      heal()
      const healed = now()
      await world.churn.stop()
      await world.settle({ since: healed })
      for (const node of world.nodes) assert.equal(await world.metric(node, "nodes_lost"), 0)
    }),
  )
})
