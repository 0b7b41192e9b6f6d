// Nothing breaks: the measure of everything else. Nobody may be lost, nothing may need repair, and news are prompt.

import { describe, test } from "node:test"
import { inWorld, now, until } from "./world.mjs"

/** What counts repairs, losses and failures. */
const ZERO = ["audit_ghosts", "audit_missing", "audit_skipped", "redis_gaps", "redis_write_failures", "redis_dropped", "nodes_lost", "slow_readers", "silent_sockets"]

describe("nothing breaks", () => {
  test(
    "churn on three nodes over many heartbeats",
    inWorld({ nodes: 3 }, async (world) => {
      const begun = now()
      await world.churn.steps(150)
      // Five heartbeats, each of which compares everything.
      await until(() => now() - begun > (5 * world.presenceTtl) / 3, "five heartbeats", 30_000)
      await world.churn.stop()
      await world.settle()
      for (const node of world.nodes) {
        const metrics = { redis_up: 1, nodes: 3, ...Object.fromEntries(ZERO.map((name) => [name, 0])) }
        await world.operator(node, { ready: { http: 200, status: "ready", redis: "up", degraded: false }, metrics }, 1000)
      }
    }),
  )
})
