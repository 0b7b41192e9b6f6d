// Redis behind TLS, with a certificate that nobody on the web has signed.

import assert from "node:assert/strict"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, counted, fresh, holds, until } from "../phoenix/client.mjs"
import { startNode } from "../phoenix/server.mjs"
import { enc, healthy, observers, undisturbed } from "./common.mjs"
import { certificates, folder, tlsServer } from "./servers.mjs"

const PASSWORD = "hunter2hunter2"

describe("a Redis that speaks TLS alone", () => {
  let files, redis
  before(async () => {
    files = await certificates()
    redis = await tlsServer(files, readFileSync(files.ca))
    // The server takes any connection; who gives a password must give this one.
    await redis.call("ACL", "SETUSER", "app", "on", `>${PASSWORD}`, "~*", "&*", "+@all")
  })
  after(() => redis?.kill())
  afterEach(closeAll)

  const url = (host = "127.0.0.1") => `rediss://app:${PASSWORD}@${host}:${redis.port}`

  test("with its authority two nodes share presence, and go on after it was restarted", async () => {
    const env = { REDIS_URL: url(), ROLLCALL_REDIS_CA: files.ca }
    const nodes = await Promise.all([startNode(env), startNode(env)])
    try {
      for (const node of nodes) await healthy(node)
      const room = fresh()
      const all = await observers(nodes, room)
      for (const node of nodes) await counted(node, room, 2)
      assert.equal(await redis.call("SCARD", `presence:channel:${enc(room)}:users`), 2)
      await redis.kill()
      await redis.start()
      await redis.call("ACL", "SETUSER", "app", "on", `>${PASSWORD}`, "~*", "&*", "+@all")
      await until(async () => (await redis.call("SCARD", `presence:channel:${enc(room)}:users`)) === 2, "all is written again", 10_000)
      await holds(() => all.every((me) => me.sees("watcher 0", "watcher 1")), "all stay", 1000)
      undisturbed(all, ["watcher 0", "watcher 1"])
    } finally {
      await Promise.all(nodes.map((node) => node.stop()))
    }
  })

  for (const [what, env, why] of [
    ["without its authority", () => ({ REDIS_URL: url() }), /certificate.*UnknownIssuer/],
    ["under a name that its certificate does not have", () => ({ REDIS_URL: url("localhost"), ROLLCALL_REDIS_CA: files.ca }), /certificate.*not valid for name/i],
    ["without TLS", () => ({ REDIS_URL: url().replace("rediss", "redis") }), /./],
    ["with a wrong password", () => ({ REDIS_URL: url().replace(PASSWORD, `${PASSWORD}x`), ROLLCALL_REDIS_CA: files.ca }), /password/i],
  ]) {
    test(`${what} the node goes on alone and says why, and nothing that is secret`, async () => {
      const node = await startNode(env())
      try {
        const told = await until(async () => {
          const { json } = await node.get("/readyz")
          return json.redis === "down" && json.problem && json
        }, "it says what is wrong", 10_000)
        assert.match(told.problem, why)
        assert.equal(told.degraded, true)
        assert.match(node.log(), /cannot connect to Redis/)
        for (const text of [JSON.stringify(told), node.log()]) assert.ok(!text.includes(PASSWORD), text)
      } finally {
        await node.stop()
      }
    })
  }

  test("what cannot be an authority stops the start with one line", async () => {
    const nonsense = path.join(folder(), "ca.pem")
    writeFileSync(nonsense, "nonsense")
    for (const [env, line] of [
      [{ REDIS_URL: url(), ROLLCALL_REDIS_CA: nonsense }, /ROLLCALL_REDIS_CA: is not a file with certificates/],
      [{ REDIS_URL: url(), ROLLCALL_REDIS_CA: `${nonsense}.none` }, /ROLLCALL_REDIS_CA: cannot read/],
      [{ REDIS_URL: url().replace("rediss", "redis"), ROLLCALL_REDIS_CA: files.ca }, /ROLLCALL_REDIS_CA: is of no use: REDIS_URL/],
      [{ REDIS_URL: `rediss+sentinel://:${PASSWORD}@127.0.0.1` }, /REDIS_URL: lacks the name/],
    ]) {
      const error = await startNode(env).then(() => assert.fail("it started"), (error) => error)
      assert.match(error.message, line)
      assert.ok(!error.message.includes(PASSWORD), error.message)
    }
  })
})
