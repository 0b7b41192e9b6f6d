// What users of a channel see of each other: the same suite on one node and across two, in both versions
// of the protocol.

import assert from "node:assert/strict"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, connectRaw, counted, fresh, holds, joinAs, member, same, until } from "./client.mjs"
import { startRedis } from "./redis.mjs"
import { startNode } from "./server.mjs"

/** How many sockets a node has. */
const sockets = async (node) => Number(/^rollcall_connections (\d+)/m.exec((await node.get("/metrics")).text)[1])

const VERSIONS = ["1.0.0", "2.0.0"]
const FRAMES = { "1.0.0": { query: { vsn: "1.0.0" }, form: "object" }, "2.0.0": {} }

for (const nodes of [1, 2]) {
  let a, b, redis
  const start = async () => {
    if (nodes === 2) redis = await startRedis()
    const env = { ROLLCALL_GRACE_SECONDS: "1", REDIS_URL: redis?.url, ROLLCALL_MAX_MESSAGE_RATE: "10000" }
    a = await startNode(env)
    b = nodes === 2 ? await startNode(env) : a
  }
  const stop = async () => {
    await Promise.all([a?.stop(), b !== a && b?.stop()])
    await redis?.stop()
  }

  for (const vsn of VERSIONS) {
    describe(`${nodes === 1 ? "one node" : "two nodes on one Redis"}, vsn ${vsn}`, () => {
      before(start)
      after(stop)
      afterEach(closeAll)
      // Ada and those like her are on the first node, who watches is on the second.
      const join = (node, room, user, options) => joinAs(node, room, user, { vsn, ...options })
      const raw = () => connectRaw(a, FRAMES[vsn])

      test("two users see each other", async () => {
        const room = fresh()
        const ada = await join(a, room, "ada", { meta: { name: "Ada" } })
        const bo = await join(b, room, "bo", { meta: { name: "Bo" } })
        const both = { ada: [{ name: "Ada" }], bo: [{ name: "Bo" }] }
        for (const me of [ada, bo]) await until(() => same(me.roster(), both), "both are there", 5000, me.roster)
        await counted(a, room, 2)
        await counted(b, room, 2)
      })

      test("many tabs are one member, who leaves with the last", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const tabs = []
        for (let tab = 0; tab < 5; tab++) tabs.push(await join(a, room, "ada", { meta: { tab } }))
        await until(() => watcher.refs("ada").length === 5, "five metas of one user", 5000, watcher.roster)
        await counted(b, room, 2, 6)
        for (const tab of tabs.slice(1)) tab.channel.leave()
        await until(() => same(watcher.roster().ada, [{ tab: 0 }]), "one is left", 5000, watcher.roster)
        assert.deepEqual(watcher.ledger.of("ada"), ["ada came"])
        tabs[0].channel.leave()
        await until(() => watcher.sees("watcher"), "gone with the last")
        await counted(a, room, 1)
      })

      test("an update is one diff: leave(old) and join(new, phx_ref_prev)", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const ada = await join(a, room, "ada", { meta: { mood: "fine" } })
        await until(() => watcher.sees("ada", "watcher"), "ada is seen")
        for (const mood of ["better", "best"]) {
          const [old] = watcher.refs("ada")
          const seen = watcher.diffs.length
          assert.equal((await ada.track({ mood })).status, "ok")
          await until(() => watcher.roster().ada[0].mood === mood, "the update is seen", 5000, watcher.roster)
          const [ref] = watcher.refs("ada")
          await holds(() => watcher.diffs.length === seen + 1, "in one diff", 300)
          const { joins, leaves } = watcher.diffs.at(-1)
          assert.deepEqual(joins.ada.metas, [{ mood, phx_ref: ref, phx_ref_prev: old }])
          assert.deepEqual(leaves.ada.metas.map((meta) => meta.phx_ref), [old])
        }
        await until(() => ada.roster().ada[0].mood === "best", "ada sees it too")
      })

      test("the same meta again is no change", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const ada = await join(a, room, "ada", { meta: { mood: "fine" } })
        await until(() => watcher.sees("ada", "watcher"), "ada is seen")
        const seen = watcher.diffs.length
        assert.equal((await ada.track({ mood: "fine" })).status, "ok")
        await holds(() => watcher.diffs.length === seen, "nothing to tell", 700)
      })

      test("an explicit leave shows at once", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const ada = await join(a, room, "ada")
        await until(() => watcher.sees("ada", "watcher"), "ada is seen")
        const began = Date.now()
        ada.channel.leave()
        await until(() => watcher.sees("watcher"), "ada is gone")
        assert.ok(Date.now() - began < 700, "without waiting for the grace")
        await counted(a, room, 1)
      })

      test("a dropped socket shows after the grace, not before", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const ada = await join(a, room, "ada")
        await until(() => watcher.sees("ada", "watcher"), "ada is seen")
        ada.vanish()
        await holds(() => watcher.sees("ada", "watcher"), "still there within the grace", 700)
        await until(() => watcher.sees("watcher"), "gone after it", 3000)
        await counted(b, room, 1)
      })

      test("who comes back within the grace was never away", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const ada = await join(a, room, "ada", { meta: { name: "Ada" } })
        await until(() => watcher.sees("ada", "watcher"), "ada is seen")
        const refs = watcher.refs("ada")
        const seen = watcher.diffs.length
        const open = await sockets(a)
        ada.vanish()
        // Without a key she can only be known to be back when she is known to have gone.
        await until(async () => (await sockets(a)) < open, "her socket's end is noticed")
        const reloaded = await join(a, room, "ada", { meta: { name: "Ada" } })
        await until(() => reloaded.sees("ada", "watcher"), "she has the roster")
        await holds(() => watcher.diffs.length === seen, "nobody is shown anything", 2500, () => watcher.diffs.slice(seen))
        assert.deepEqual(watcher.refs("ada"), refs)
        await counted(b, room, 2)
      })

      test("an observer sees and is not seen", async () => {
        const room = fresh()
        const ada = await join(a, room, "ada")
        const observer = await join(b, room, "spy", { observe: true })
        await until(() => observer.sees("ada"), "the roster without itself", 5000, observer.users)
        const bo = await join(a, room, "bo")
        await until(() => observer.sees("ada", "bo"), "and its changes")
        await counted(b, room, 2)
        for (const me of [ada, bo]) assert.deepEqual(me.ledger.of("spy"), [])
        observer.channel.leave()
        await holds(() => ada.sees("ada", "bo"), "its leave is no one's business", 500)
      })

      test("an observer may track, untrack and track again", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const ada = await join(a, room, "ada", { observe: true })
        for (const mood of ["first", "second"]) {
          assert.deepEqual(await ada.track({ mood }), { status: "ok", response: {} })
          await until(() => same(watcher.roster().ada, [{ mood }]), "she is seen", 5000, watcher.roster)
          assert.deepEqual(await ada.untrack(), { status: "ok", response: {} })
          await until(() => watcher.sees("watcher"), "and is gone at once", 700)
        }
        assert.equal((await ada.untrack()).status, "ok", "twice is fine")
        assert.ok(ada.sees("watcher"), "she sees the channel all the same")
        assert.equal((await ada.push("presence", { type: "presence", event: "TRACK", payload: { loud: true } })).status, "ok")
        await until(() => same(watcher.roster().ada, [{ loud: true }]), "in capitals too", 5000, watcher.roster)
      })

      test("a refused join is an error reply with a reason, and the socket lives on", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const socket = await raw()
        const refusals = [
          { user_id: "__proto__" },
          { user_id: "constructor" },
          { user_id: "prototype" },
          { user_id: "ids" },
          { user_id: "" },
          { user_id: "é".repeat(129) },
          { user_id: ["ada"] },
          { user_id: { id: "ada" } },
          { user_id: "ada", meta: [] },
          { user_id: "ada", meta: "fine" },
          { user_id: "ada", meta: 5 },
          { user_id: "ada", meta: { big: "x".repeat(4097) } },
        ]
        for (const payload of refusals) {
          const what = JSON.stringify(payload).slice(0, 60)
          const { status, response } = await socket.join(room, payload)
          assert.equal(status, "error", what)
          assert.ok(typeof response.reason === "string" && response.reason.length > 0, what)
          await socket.heartbeat()
        }
        assert.equal(socket.ended, null)
        assert.equal((await socket.join(room, { user_id: "é".repeat(128) })).status, "ok")
        await until(() => watcher.sees("watcher", "é".repeat(128)), "128 characters are fine", 5000, watcher.users)
        assert.equal(watcher.ledger.moves.length, 2, "of those refused nobody heard")
      })

      test("a refused track is an error reply with a reason, and the meta stays", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const ada = await join(a, room, "ada", { meta: { n: 1 } })
        for (const meta of [{ big: "x".repeat(4097) }, [1], "fine", 5]) {
          const { status, response } = await ada.track(meta)
          assert.equal(status, "error")
          assert.ok(typeof response.reason === "string" && response.reason.length > 0)
        }
        assert.equal((await ada.push("presence", { type: "presence", event: "vanish" })).status, "error")
        await until(() => watcher.sees("ada", "watcher"), "ada is there")
        assert.deepEqual(watcher.roster().ada, [{ n: 1 }])
        assert.equal((await ada.track({ n: 2 })).status, "ok")
        await until(() => same(watcher.roster().ada, [{ n: 2 }]), "and good ones count", 5000, watcher.roster)
      })

      test("a number as user_id is its text", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const one = await join(a, room, 42)
        await join(a, room, "42")
        await until(() => watcher.refs("42").length === 2, "42 and \"42\" are one", 5000, watcher.roster)
        await counted(b, room, 2, 3)
        one.channel.leave()
      })

      test("user_id and meta may come with the connection, and no name is a name of one's own", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher", { observe: true })
        await join(a, room, undefined, { params: { user_id: "ada", meta: { name: "Ada" } } })
        await until(() => same(watcher.roster(), { ada: [{ name: "Ada" }] }), "named by the connection", 5000, watcher.roster)
        await join(a, room, undefined)
        await join(a, room, undefined)
        await until(() => watcher.users().length === 3, "two without a name are two", 5000, watcher.users)
        await counted(b, room, 3)
      })

      test("40 track calls at once: the last meta wins and nothing is closed", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const ada = await join(a, room, "ada")
        const answers = await Promise.all(Array.from({ length: 40 }, (_, n) => ada.track({ n: n + 1 })))
        assert.deepEqual([...new Set(answers.map((answer) => answer.status))], ["ok"])
        await until(() => same(watcher.roster().ada, [{ n: 40 }]), "the last is seen", 5000, watcher.roster)
        await holds(() => same(watcher.roster().ada, [{ n: 40 }]), "and stays", 700, watcher.roster)
        const order = watcher.diffsOf("ada").flatMap((diff) => diff.joins.ada?.metas.map((meta) => meta.n ?? 0) ?? [])
        assert.deepEqual(order, [...order].sort((x, y) => x - y), "never back to an older one")
        assert.deepEqual([ada.closes, watcher.ledger.of("ada")], [[], ["ada came"]])
      })

      test("untrack wins over track calls that still wait", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const ada = await join(a, room, "ada")
        await until(() => watcher.sees("ada", "watcher"), "ada is there")
        const calls = Array.from({ length: 40 }, (_, n) => ada.track({ n }))
        calls.push(ada.untrack())
        await Promise.all(calls)
        await until(() => watcher.sees("watcher"), "gone", 5000, watcher.roster)
        await holds(() => watcher.sees("watcher"), "and not back", 3000, watcher.roster)
      })

      test("HTTP tells the same roster", async () => {
        const room = fresh()
        const ada = await join(a, room, "ada", { meta: { tab: 1 } })
        await join(b, room, "ada", { meta: { tab: 2 } })
        await join(b, room, "bo", { meta: { name: "Bo" } })
        for (const node of [a, b]) {
          await counted(node, room, 2, 3)
          const { json } = await node.get(`/v1/channels/${encodeURIComponent(room)}/presence`)
          assert.equal(json.channel, room)
          assert.equal(json.online, 2)
          assert.equal(json.connections, 3)
          assert.equal(json.next, null)
          assert.equal(typeof json.version, "string")
          const members = Object.fromEntries(json.members.map((one) => [one.user, one]))
          assert.deepEqual(Object.keys(members).sort(), ["ada", "bo"])
          assert.equal(members.ada.connections, 2)
          assert.ok(!Number.isNaN(Date.parse(members.bo.online_since)), members.bo.online_since)
          const metas = members.ada.metas.map(({ tab }) => tab).sort()
          assert.deepEqual(metas, [1, 2])
          const { json: user } = await node.get("/v1/users/bo/presence")
          assert.deepEqual([user.user, user.online, user.channels.includes(room)], ["bo", true, true])
        }
        ada.vanish()
        for (const node of [a, b]) await counted(node, room, 2, 2)
      })

      test("fields that belong to the protocol are taken out of metas", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const meta = { phx_ref: "mine", phx_ref_prev: "older", presence_ref: "other", name: "Ada" }
        const ada = await join(a, room, "ada", { meta })
        await until(() => same(watcher.roster().ada, [{ name: "Ada" }]), "only the name is left", 5000, watcher.roster)
        assert.ok(!watcher.refs("ada").includes("mine"))
        assert.equal((await ada.track({ ...meta, name: "Countess" })).status, "ok")
        await until(() => same(watcher.roster().ada, [{ name: "Countess" }]), "in updates too", 5000, watcher.roster)
        assert.ok(!watcher.refs("ada").includes("mine"))
      })

      test("metas arrive as they were sent", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        const meta = {
          text: "“Zoë” \u2028 \u0000 \\ / 🦀 名前",
          numbers: [0, -1, 0.1, 1e21, 9007199254740991],
          nested: { list: [[], {}, null, true], metas: [1], "": "empty", "a.b": 1 },
        }
        await join(a, room, "ada", { meta })
        await until(() => same(watcher.roster().ada, [meta]), "the same value", 5000, watcher.roster)
      })

      test("names of users and channels may be any text", async () => {
        const rooms = ["salon: café/✓ %41?#&+", "名前:{a}", "room::", "a%3Ab", "a:b", "🦀".repeat(50)]
        const users = ["Zoë 🦀 名前", "a:b", "a%3Ab", "{x}", "a/b?c#d", " ", "toString", "hasOwnProperty", "0"]
        for (const name of rooms) {
          const room = `${name}${rooms.indexOf(name) === 5 ? "" : ` ${fresh("")}`}`
          const watcher = await join(b, room, "watcher", { observe: true })
          const all = await Promise.all(users.map((user) => join(a, room, user)))
          await until(() => watcher.sees(...users), `all in ${room}`, 5000, watcher.users)
          await counted(b, room, users.length)
          for (const me of all) me.channel.leave()
          await until(() => watcher.users().length === 0, `all left ${room}`, 5000, watcher.users)
        }
      })

      test("a user in many channels leaves only the one left", async () => {
        const [one, two] = [fresh(), fresh()]
        const watchers = [await join(b, one, "watcher"), await join(b, two, "watcher")]
        const ada = await join(a, one, "ada")
        const second = ada.socket.channel(two, { user_id: "ada" })
        second.join()
        for (const watcher of watchers) await until(() => watcher.sees("ada", "watcher"), "ada is in both")
        second.leave()
        await until(() => watchers[1].sees("watcher"), "out of the second")
        await holds(() => watchers[0].sees("ada", "watcher"), "still in the first", 300)
      })

      test("users who come and go all the time leave nothing behind", async () => {
        const room = fresh()
        const watcher = await join(b, room, "watcher")
        await Promise.all(
          Array.from({ length: 12 }, async (_, i) => {
            for (let round = 0; round < 8; round++) {
              const me = member(a, room, { user_id: `u${i}`, meta: { round } }, { vsn })
              assert.equal((await me.joined).status, "ok")
              if (round % 3 === 0) me.vanish()
              else me.channel.leave()
            }
          }),
        )
        await until(() => watcher.sees("watcher"), "only the watcher is left", 6000, watcher.users)
        await counted(a, room, 1)
        await counted(b, room, 1)
      })
    })
  }
}
