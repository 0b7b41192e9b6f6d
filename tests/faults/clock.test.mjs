// The wall clock jumps, of one node or of Redis' machine. Liveness must not hang on it. The clock is that of a
// small library made here from clock.c; without a C compiler these tests are skipped, and say so.

import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { writeFileSync } from "node:fs"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import { describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import { inWorld, now, until } from "./world.mjs"

const source = fileURLToPath(new URL("clock.c", import.meta.url))

/** A clock that is `set` to seconds before or after the real one, and the environment that makes a process use it. */
const movedClock = (folder) => {
  const [library, file] = [path.join(folder, "clock.so"), path.join(folder, "offset")]
  execFileSync("cc", ["-shared", "-fPIC", "-O1", "-o", library, source])
  const set = (seconds) => {
    const bytes = Buffer.alloc(8)
    new BigInt64Array(bytes.buffer, bytes.byteOffset, 1)[0] = BigInt(seconds)
    // In place: the processes have the file mapped.
    writeFileSync(file, bytes, { flag: "r+" })
  }
  writeFileSync(file, Buffer.alloc(8))
  return { env: { LD_PRELOAD: library, CLOCK_OFFSET_FILE: file }, set }
}

const compiler = () => {
  try {
    return Boolean(execFileSync("cc", ["--version"]))
  } catch {
    return false
  }
}
const skip = compiler() ? false : "there is no C compiler"

const withFolder = (story) => async (t) => {
  const folder = await mkdtemp(path.join(tmpdir(), "rollcall-clock-"))
  try {
    await story(t, folder)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** What the node's clock says, seen in its log: the jump has really happened. */
const clockOf = (node) => Date.parse(node.log().trim().split("\n").at(-1).replace(/\u001b\[[0-9;]*m/g, "").split(/\s+/)[0])

describe("the wall clock jumps", { concurrency: 3, skip }, () => {
  test(
    "of one node, an hour ahead and two back: nobody notices",
    withFolder(async (t, folder) => {
      const clock = movedClock(folder)
      await inWorld({ nodes: 3, nodeEnv: (at) => (at === 0 ? clock.env : {}) }, async (world) => {
        const [a] = world.nodes
        for (const seconds of [3600, -3600]) {
          clock.set(seconds)
          await world.churn.steps(60)
        }
        await world.churn.stop()
        await world.settle()
        for (const node of world.nodes) assert.equal(await world.metric(node, "nodes_lost"), 0)
        // It says when it ends, by its own clock.
        await world.term(a)
        const off = clockOf(a) - Date.now()
        assert.ok(Math.abs(off + 3_600_000) < 60_000, `the clock of the node was ${off} ms off`)
        await world.settle()
      })(t)
    }),
  )

  test(
    "of Redis, an hour ahead: every key is gone at once",
    withFolder(async (t, folder) => {
      const clock = movedClock(folder)
      await inWorld({ nodes: 3, redis: { env: clock.env } }, async (world) => {
        world.mark()
        const before = Number((await world.redis.call("TIME"))[0])
        const heal = world.truth.disturb()
        clock.set(3600)
        await until(async () => Number((await world.redis.call("TIME"))[0]) >= before + 3600, "Redis' clock has jumped")
        heal()
        await world.recover(now())
        for (const node of world.nodes) {
          // One whose connection ended in that very moment has begun anew before it could miss its lease.
          await world.operator(node, { ready: { redis: "up", degraded: false }, metrics: { nodes_lost: 0, nodes: 3 }, log: /lease_lost|redis_away/ })
        }
      })(t)
    }),
  )

  test(
    "of Redis, an hour back: a node that dies afterwards is noticed in time",
    withFolder(async (t, folder) => {
      const clock = movedClock(folder)
      clock.set(3600)
      await inWorld({ nodes: 3, redis: { env: clock.env } }, async (world) => {
        const [a, b, c] = world.nodes
        world.mark()
        const before = Number((await world.redis.call("TIME"))[0])
        clock.set(0)
        await until(async () => Number((await world.redis.call("TIME"))[0]) <= before - 3000, "Redis' clock has jumped")
        // Every lease is renewed under the new clock.
        const renewed = async () => (await Promise.all(world.nodes.map(({ id }) => world.redis.call("PTTL", `presence:node:${id}`)))).every((ttl) => ttl <= world.lease)
        await until(renewed, "every lease is renewed", 5000)
        await world.churn.steps(20)
        for (const node of world.nodes) assert.equal(await world.metric(node, "nodes_lost"), 0)
        await world.kill(c)
        await until(async () => (await world.metric(a, "nodes_lost")) + (await world.metric(b, "nodes_lost")) >= 1, "its death is noticed", world.truth.killed + 2000)
        await world.churn.stop()
        await world.settle()
      })(t)
    }),
  )
})
