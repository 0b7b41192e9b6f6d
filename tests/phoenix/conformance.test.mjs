// The Phoenix protocol, item by item: the real npm client where it does the thing itself, single frames
// where the item needs bytes that it would not send.

import assert from "node:assert/strict"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, connectRaw, count, counted, fresh, holds, joinAs, member, refused, same, until, WebSocket } from "./client.mjs"
import { startNode } from "./server.mjs"

const SERVICE_KEY = "a service key for tests"

describe("Phoenix conformance", () => {
  let node
  before(async () => (node = await startNode({ SERVICE_KEY, ROLLCALL_MAX_MESSAGE_RATE: "10000" })))
  after(() => node?.stop())
  afterEach(closeAll)

  test("1. vsn absent / 1.0.0 / 2.0.0 / 9.9.9; array vs object sniffing; refs echoed as strings", async () => {
    const ways = [
      { query: {}, form: "object" },
      { query: { vsn: "1.0.0" }, form: "object" },
      { query: { vsn: "1.0.0" }, form: "array" },
      { query: { vsn: "2.0.0" }, form: "array" },
    ]
    for (const way of ways) {
      const what = JSON.stringify(way)
      const raw = await connectRaw(node, way)
      const topic = fresh()
      raw.send("0xj", "0xj", topic, "phx_join", { user_id: "u1" })
      const joined = await raw.reply("0xj")
      assert.equal(joined.form, way.form, `${what}: answered as it was asked`)
      assert.deepEqual(joined.payload, { status: "ok", response: {} }, what)
      if (way.form === "array") assert.equal(joined.join_ref, "0xj", what)
      const state = await until(() => raw.got(topic, "presence_state")[0], "the roster")
      assert.equal(state.form, way.form, what)
      raw.send("0xj", "007", topic, "presence", { type: "presence", event: "track", payload: { n: 1 } })
      assert.equal((await raw.reply("007")).payload.status, "ok", what)
      const updates = () => raw.got(topic, "presence_diff").filter((frame) => frame.payload.joins.u1?.metas[0].n === 1)
      await until(() => updates().length > 0, `${what}: its own update`)
    }
    const { status } = await refused(node, { query: { vsn: "9.9.9" } })
    assert.ok(status >= 400 && status < 500, `vsn 9.9.9 is refused with ${status}`)

    for (const vsn of ["1.0.0", "2.0.0"]) {
      const room = fresh()
      const me = await joinAs(node, room, "ada", { vsn })
      await until(() => me.sees("ada"), `the real client speaks ${vsn}`)
    }
    const room = fresh()
    const arrays = member(node, room, { user_id: "ada" }, { vsn: "1.0.0", encode: undefined, decode: undefined })
    assert.equal((await arrays.joined).status, "ok", "vsn 1.0.0 without own encode and decode still writes arrays")
    await until(() => arrays.sees("ada"), "and is answered with arrays")
  })

  test("2. Subprotocol auth: phoenix selected, token decoded, token never echoed; plain connect has no subprotocol", async () => {
    const guarded = await startNode({ SERVICE_KEY, ROLLCALL_AUTH: "session" })
    try {
      const made = await guarded.post("/v1/sessions", { user_id: "ada" }, { Authorization: `Bearer ${SERVICE_KEY}` })
      assert.equal(made.status, 201, made.text)
      const token = made.json.access_token

      const room = fresh()
      const me = await joinAs(guarded, room, "somebody else", { authToken: token })
      assert.equal(me.socket.conn.protocol, "phoenix")
      await until(() => me.sees("ada"), "the token says who it is, not the payload", 5000, me.users)

      const bearer = (text) => `base64url.bearer.phx.${text}`
      for (const encoding of ["base64", "base64url"]) {
        const word = Buffer.from(token).toString(encoding).replace(/=/g, "")
        const raw = await connectRaw(guarded, { protocols: ["phoenix", bearer(word)] })
        assert.equal(raw.upgrade.headers["sec-websocket-protocol"], "phoenix")
        assert.ok(!JSON.stringify(raw.upgrade.rawHeaders).includes(word), "the token is not echoed")
        await raw.heartbeat()
      }
      const wrong = Buffer.from("no such token").toString("base64url")
      assert.equal((await refused(guarded, { protocols: ["phoenix", bearer(wrong)] })).status, 401)
      assert.ok(!guarded.log().includes(token), "the token is not logged")
    } finally {
      await guarded.stop()
    }
    const plain = await connectRaw(node)
    assert.equal(plain.upgrade.headers["sec-websocket-protocol"], undefined)
  })

  test("3. Heartbeat answered with no channel joined and while a join is pending", async () => {
    for (const way of [{}, { query: { vsn: "1.0.0" }, form: "object" }]) {
      const raw = await connectRaw(node, way)
      await raw.heartbeat()
      raw.send("3", "3", fresh(), "phx_join", { user_id: "u1" })
      await raw.heartbeat()
      assert.equal((await raw.reply("3")).payload.status, "ok")
    }
    const me = await joinAs(node, fresh(), "ada", { heartbeatIntervalMs: 100 })
    await holds(() => me.socket.isConnected() && me.closes.length === 0, "the real client stays content with its heartbeats", 1000)
  })

  test("4. Join error → client rejoins at 1/2/5/10 s; server state shows no member in between", async () => {
    const room = fresh()
    const watcher = await joinAs(node, room, "watcher")
    let user = "__proto__"
    const me = member(node, room, () => ({ user_id: user }))
    const tries = () => me.replies.length
    await until(() => tries() >= 3, "three tries", 25_000, tries)
    for (const { status, response } of me.replies) {
      assert.equal(status, "error")
      assert.match(response.reason, /./)
    }
    const [first, second, third] = me.replies.map((reply) => reply.at)
    assert.ok(second - first >= 950 && third - second >= 1950, "it waited before each")
    assert.deepEqual(watcher.users(), ["watcher"])
    assert.deepEqual(watcher.ledger.moves, ["watcher came"])
    await counted(node, room, 1)
    user = "ada"
    await until(() => watcher.sees("ada", "watcher"), "the next try, with a good name, succeeds", 20_000)
    assert.equal(me.closes.length, 0, "all on one socket")
  })

  test("5. Join slower than 10 s → phx_leave(old) + phx_join(new); exactly one member afterwards", async () => {
    const room = fresh()
    const watcher = await joinAs(node, room, "watcher")
    const raw = await connectRaw(node)
    raw.send("3", "3", room, "phx_join", { user_id: "ada", meta: { try: 1 } })
    raw.send("3", "4", room, "phx_leave", {})
    raw.send("5", "5", room, "phx_join", { user_id: "ada", meta: { try: 2 } })
    assert.equal((await raw.reply("5")).payload.status, "ok")
    await until(() => same(watcher.roster().ada, [{ try: 2 }]), "the second join counts", 5000, watcher.roster)
    await counted(node, room, 2)
    await holds(() => watcher.refs("ada").length === 1, "one member, one meta", 1500)
    // The same with the real client, to which the answers to its first two joins do not come through.
    const hasty = member(node, room, { user_id: "bo" }, { timeout: 200, rejoinAfterMs: () => 50 })
    const hear = hasty.socket.onConnMessage.bind(hasty.socket)
    hasty.socket.onConnMessage = (event) => {
      if (hasty.replies.length >= 2 || !event.data.includes("phx_reply")) hear(event)
    }
    await until(() => hasty.replies.length >= 3, "three tries", 5000, () => hasty.replies)
    assert.deepEqual(hasty.replies.map((reply) => reply.status), ["timeout", "timeout", "ok"])
    await until(() => hasty.sees("ada", "bo", "watcher"), "the third gives it the roster", 5000, hasty.users)
    await until(() => watcher.refs("bo").length === 1, "one meta")
    hasty.vanish()
    await until(() => watcher.sees("ada", "watcher"), "no ghost of the hasty one", 5000, watcher.users)
    await counted(node, room, 2)
  })

  test("6. Frame with stale join_ref is ignored; server frame with stale join_ref is dropped by client", async () => {
    const room = fresh()
    const watcher = await joinAs(node, room, "watcher")
    const raw = await connectRaw(node)
    for (const ref of ["3", "5"]) {
      raw.send(ref, ref, room, "phx_join", { user_id: "ada", meta: { join: ref } })
      assert.equal((await raw.reply(ref)).payload.status, "ok")
    }
    await until(() => same(watcher.roster().ada, [{ join: "5" }]), "the second join", 5000, watcher.roster)
    raw.send("3", "6", room, "presence", { type: "presence", event: "track", payload: { stale: true } })
    raw.send("3", "7", room, "phx_leave", {})
    await raw.heartbeat()
    await holds(() => same(watcher.roster().ada, [{ join: "5" }]), "stale track and leave change nothing", 700, watcher.roster)
    const null_ref = await raw.call(room, "presence", { type: "presence", event: "track", payload: { via: "null" } })
    assert.equal(null_ref.status, "ok", "no join_ref means the current join")
    await until(() => same(watcher.roster().ada, [{ via: "null" }]), "and is applied")

    // A second channel object makes the client leave the first and join again, back to back.
    const me = await joinAs(node, room, "bo")
    const again = me.socket.channel(room, { user_id: "bo", meta: { again: true } })
    const joined = new Promise((resolve) => again.join().receive("ok", resolve))
    await joined
    await until(() => same(watcher.roster().bo, [{ again: true }]), "one meta, the new one", 5000, watcher.roster)
    await holds(() => again.state === "joined", "the close of the old join leaves the new one alone", 500)
  })

  test("7. Duplicate phx_join on one socket: one subscription, one meta, phx_close for old ref only (none on v1)", async () => {
    for (const [way, closes] of [[{}, [["3", "3"]]], [{ query: { vsn: "1.0.0" }, form: "object" }, []]]) {
      const room = fresh()
      const watcher = await joinAs(node, room, "watcher", { observe: true })
      const raw = await connectRaw(node, way)
      for (const ref of ["3", "5"]) {
        raw.send(ref, ref, room, "phx_join", { user_id: "ada" })
        assert.equal((await raw.reply(ref)).payload.status, "ok")
      }
      await until(() => watcher.refs("ada").length === 1, "one meta")
      await counted(node, room, 1)
      const diffs = () => raw.got(room, "presence_diff").filter((frame) => frame.payload.joins.ada?.metas[0].n === 7)
      raw.send("5", "8", room, "presence", { type: "presence", event: "track", payload: { n: 7 } })
      await until(() => diffs().length > 0, "the update comes")
      await holds(() => diffs().length === 1, "once", 500)
      assert.deepEqual(raw.got(room, "phx_close").map((frame) => [frame.join_ref, frame.ref]), closes)
      assert.equal(raw.got(room, "phx_error").length, 0)
      assert.deepEqual(watcher.ledger.moves, ["ada came"], "nobody saw a leave")
    }
  })

  test("8. Diff arriving before state is applied after it, one sync, no lost member", async () => {
    const room = fresh()
    const users = Array.from({ length: 30 }, (_, i) => `u${i}`)
    const all = await Promise.all(users.map((user) => joinAs(node, room, user)))
    for (const me of all) {
      await until(() => me.sees(...users), "everybody sees everybody", 10_000, me.users)
      assert.equal(me.states.length, 1, "one snapshot a join")
    }
    await counted(node, room, users.length)

    const raw = await connectRaw(node)
    raw.send("3", "3", room, "phx_join", { user_id: "late" })
    await until(() => raw.got(room, "presence_state").length > 0, "the roster")
    const order = raw.got(room).map((frame) => frame.event)
    assert.deepEqual(order.slice(0, 2), ["phx_reply", "presence_state"], "reply first, then the roster")
  })

  test("9. Update yields exactly one diff: leave(old ref) + join(new ref, phx_ref_prev)", async () => {
    const room = fresh()
    const watcher = await joinAs(node, room, "watcher")
    const me = await joinAs(node, room, "ada", { meta: { at: 1 } })
    await until(() => watcher.sees("ada", "watcher"), "ada is seen")
    const [old] = watcher.refs("ada")
    const seen = watcher.diffs.length
    assert.deepEqual(await me.track({ at: 9 }), { status: "ok", response: {} })
    await until(() => watcher.roster().ada?.[0].at === 9, "the update is seen")
    await holds(() => watcher.diffs.length === seen + 1, "in one diff", 500)
    const { joins, leaves } = watcher.diffs.at(-1)
    const [ref] = watcher.refs("ada")
    assert.notEqual(ref, old)
    assert.deepEqual(joins, { ada: { metas: [{ at: 9, phx_ref: ref, phx_ref_prev: old }] } })
    assert.deepEqual(Object.keys(leaves), ["ada"])
    assert.equal(leaves.ada.metas.length, 1)
    assert.equal(leaves.ada.metas[0].phx_ref, old)
    assert.equal(leaves.ada.metas[0].at, 1)
  })

  test("10. Two tabs, same key: two metas; closing one removes one meta, key survives", async () => {
    const room = fresh()
    const watcher = await joinAs(node, room, "watcher")
    const one = await joinAs(node, room, "ada", { meta: { tab: 1 } })
    await joinAs(node, room, "ada", { meta: { tab: 2 } })
    await until(() => watcher.refs("ada").length === 2, "two metas")
    await counted(node, room, 2, 3)
    one.vanish()
    await until(() => same(watcher.roster().ada, [{ tab: 2 }]), "one meta is left", 5000, watcher.roster)
    await counted(node, room, 2, 2)
    assert.deepEqual(watcher.ledger.of("ada"), ["ada came"])
  })

  test("11. Socket drop (close 1001, 1011, TCP reset): rejoin, new join_ref, snapshot; other members' refs unchanged", async () => {
    const room = fresh()
    const watcher = await joinAs(node, room, "watcher")
    const me = await joinAs(node, room, "ada")
    await until(() => me.sees("ada", "watcher") && watcher.sees("ada", "watcher"), "both see both")
    const refs = me.refs("watcher")
    const drops = {
      1001: () => me.socket.conn.close(1001),
      1011: () => me.socket.conn.close(1011),
      reset: () => me.reset(),
    }
    for (const [how, drop] of Object.entries(drops)) {
      const before = { joinRef: me.channel.joinRef(), states: me.states.length, seen: watcher.ledger.moves.length }
      drop()
      await until(() => me.states.length > before.states && me.channel.state === "joined", `${how}: it comes back by itself`)
      assert.notEqual(me.channel.joinRef(), before.joinRef)
      await until(() => me.sees("ada", "watcher"), `${how}: it has the roster again`, 5000, me.users)
      assert.deepEqual(me.refs("watcher"), refs, "the other one did not move")
      await holds(() => watcher.ledger.moves.length === before.seen, `${how}: nobody saw it go`, 1500)
      await until(() => watcher.refs("ada").length === 1, `${how}: one meta`)
    }
    await counted(node, room, 2)
  })

  test("12. leave() removes the member at once even though the client ignores the reply", async () => {
    const room = fresh()
    const watcher = await joinAs(node, room, "watcher")
    const me = await joinAs(node, room, "ada")
    await until(() => watcher.sees("ada", "watcher"), "ada is there")
    me.channel.leave()
    await until(() => watcher.sees("watcher"), "gone at once, long before any grace", 600)
    assert.ok(me.socket.isConnected())

    const raw = await connectRaw(node)
    const { ref } = await raw.join(room, { user_id: "bo" })
    const left = await raw.call(room, "phx_leave", {}, ref)
    assert.equal(left.status, "ok")
    const close = await until(() => raw.got(room, "phx_close")[0], "the channel's close")
    assert.deepEqual([close.join_ref, close.ref], [ref, ref])
    assert.equal((await raw.call(room, "phx_leave", {}, ref)).status, "ok", "leaving twice is fine")

    // A client says it once, also one that has said too much.
    const loud = await joinAs(node, room, "loud")
    await until(() => watcher.sees("loud", "watcher"), "the loud one is there")
    for (let n = 0; n < 400; n++) loud.channel.push("broadcast", { event: "noise", payload: {} })
    loud.channel.leave()
    await until(() => watcher.sees("watcher"), "gone, and not when its socket is", 8000, watcher.users)
  })

  test("13. phx_error → rejoin; phx_close → no rejoin", async () => {
    const room = fresh()
    const watcher = await joinAs(node, room, "watcher")
    const me = await joinAs(node, room, "ada")
    await until(() => watcher.sees("ada", "watcher"), "ada is there")
    // No healthy server sends phx_error, so the client is made to believe it got one.
    const ref = me.channel.joinRef()
    me.socket.onConnMessage({ data: JSON.stringify([ref, ref, room, "phx_error", { reason: "channel_crash" }]) })
    assert.equal(me.channel.state, "errored")
    await until(() => me.channel.state === "joined", "it joins again over the same socket")
    assert.notEqual(me.channel.joinRef(), ref)
    await until(() => watcher.refs("ada").length === 1 && me.sees("ada", "watcher"), "one member, one meta")
    assert.deepEqual(watcher.ledger.of("ada"), ["ada came"], "nobody saw it go")

    // A join that the client knows nothing of makes the server close the client's own.
    me.socket.conn.send(JSON.stringify(["foreign", "foreign", room, "phx_join", { user_id: "ada" }]))
    await until(() => me.channel.state === "closed", "phx_close is final")
    const tries = me.replies.length
    await holds(() => me.channel.state === "closed" && me.replies.length === tries, "no rejoin", 1500)
    await until(() => watcher.refs("ada").length === 1, "the new join is the one that counts")
  })

  test("14. Binary push echo as kind 1 reply and kind 2 broadcast; header string of 256 bytes rejected cleanly", async () => {
    const room = fresh()
    const watcher = await joinAs(node, room, "watcher")
    const me = await joinAs(node, room, "ada")
    const heard = []
    watcher.channel.on("blob", (data) => heard.push([...new Uint8Array(data)]))
    me.channel.on("blob", () => heard.push("its own"))
    const answer = new Promise((resolve) => {
      const push = me.channel.push("blob", new Uint8Array([1, 2]).buffer, 1500)
      for (const status of ["ok", "error", "timeout"]) push.receive(status, (response) => resolve([status, response]))
    })
    const [status, response] = await answer
    assert.deepEqual([status, [...new Uint8Array(response)]], ["ok", [1, 2]])
    await until(() => heard.length > 0, "the watcher hears the bytes")
    assert.deepEqual(heard, [[1, 2]])
    assert.equal((await me.track({ after: "blob" })).status, "ok", "the channel lives on")
    assert.throws(() => me.channel.push("b".repeat(256), new ArrayBuffer(1)), /255 bytes/)

    const raw = await connectRaw(node)
    const { ref } = await raw.join(room, { user_id: "bo" })
    const push = (joinRef, ref, topic, event, data, lengths) => {
      const parts = [joinRef, ref, topic, event].map((part) => Buffer.from(part))
      return Buffer.concat([Buffer.from([0, ...(lengths ?? parts.map((part) => part.length))]), ...parts, Buffer.from(data)])
    }
    const frames = [
      push(ref, "8", room, "blob", [1, 2]),
      push(ref, "9", room, "blob", [], [1, 1, 255, 255]),
      push(ref, "9", room, "blob", [], [255, 255, 255, 255]),
      Buffer.from([]),
      Buffer.from([0]),
      Buffer.from([1, 1, 1, 1, 1]),
      Buffer.from([2, 0, 0]),
      Buffer.from([9, 1, 1, 1, 1]),
      Buffer.concat([Buffer.from([0, 2, 1, 2, 2]), Buffer.from([0xff, 0xfe, 0x38, 0xff, 0xfe, 0xff, 0xfe])]),
    ]
    for (const frame of frames) {
      raw.socket.send(frame)
      await raw.heartbeat()
    }
    await until(() => watcher.sees("ada", "bo", "watcher"), "nobody was harmed", 5000, watcher.users)
    assert.equal(raw.ended, null)
  })

  test("15. Client-side 1000 'heartbeat timeout' close is handled as a drop, no ghost after reconnect", async () => {
    const room = fresh()
    const watcher = await joinAs(node, room, "watcher")
    const me = await joinAs(node, room, "ada")
    await until(() => watcher.sees("ada", "watcher"), "ada is there")
    const states = me.states.length
    me.socket.pendingHeartbeatRef = "an unanswered one"
    me.socket.heartbeatTimeout()
    await until(() => me.states.length > states, "it comes back", 5000)
    await until(() => watcher.refs("ada").length === 1, "one meta", 5000)
    await holds(() => watcher.ledger.of("ada").length === 1, "nobody saw it go", 1500)
    await counted(node, room, 2)
    me.channel.leave()
    await until(() => watcher.sees("watcher"), "and no ghost stays behind", 600)
    await counted(node, room, 1)
  })
})

describe("What the server settles beyond the list", () => {
  let node
  before(async () => (node = await startNode({ ROLLCALL_MAX_MESSAGE_RATE: "10000" })))
  after(() => node?.stop())
  afterEach(closeAll)

  test("unknown events and unmatched topics get an error reply, and the socket lives on", async () => {
    const room = fresh()
    const me = await joinAs(node, room, "ada")
    assert.deepEqual(await me.push("shout", { text: "hi" }), { status: "error", response: { reason: "unknown event" } })
    const raw = await connectRaw(node)
    const { status, response } = await raw.call(fresh(), "presence", { type: "presence", event: "track", payload: {} })
    assert.deepEqual({ status, response }, { status: "error", response: { reason: "unmatched topic" } })
    await raw.heartbeat()
    assert.deepEqual(await count(node, room), { online: 1, connections: 1 })
  })

  test("the 101st channel of a connection is refused, the 100 others stay", async () => {
    const raw = await connectRaw(node)
    const rooms = Array.from({ length: 100 }, () => fresh("many"))
    for (const room of rooms) assert.equal((await raw.join(room, { user_id: "ada" })).status, "ok")
    const { status, response } = await raw.join(fresh("many"), { user_id: "ada" })
    assert.deepEqual({ status, response }, { status: "error", response: { reason: "too many channels joined" } })
    await raw.heartbeat()
    await raw.call(rooms[0], "phx_leave", {})
    assert.equal((await raw.join(fresh("many"), { user_id: "ada" })).status, "ok", "one left, one more fits")
    await counted(node, rooms[99], 1)
  })

  test("a channel name over the limit is refused, one at the limit is fine", async () => {
    const raw = await connectRaw(node)
    const long = (bytes) => `é${"x".repeat(bytes - 2)}`
    const { status, response } = await raw.join(long(201), { user_id: "ada" })
    assert.equal(status, "error")
    assert.match(response.reason, /./)
    assert.equal((await raw.join(long(200), { user_id: "ada" })).status, "ok")
    await counted(node, long(200), 1)
  })

  test("stopping tells clients to reconnect: close 1012, never 1000", async () => {
    const draining = await startNode()
    const raws = []
    for (let i = 0; i < 10; i++) {
      const raw = await connectRaw(draining)
      await raw.join("room:drain", { user_id: `u${i}` })
      raws.push(raw)
    }
    const idle = await connectRaw(draining)
    const { code, signal, ms } = await draining.stop("SIGTERM")
    assert.deepEqual({ code, signal }, { code: 0, signal: null })
    assert.ok(ms < 10_000, `it took ${ms} ms`)
    for (const raw of [...raws, idle]) assert.equal((await raw.end()).code, 1012)
  })

  test("long-poll, where there is none, is answered quickly and without JSON", async () => {
    const { status, type } = await node.get("/socket/longpoll?vsn=2.0.0", { Origin: "http://localhost" })
    if (status === 404) assert.doesNotMatch(type, /json/)
  })

  test("a browser's WebSocket options are fine: permessage-deflate offered, any apikey", async () => {
    const socket = new WebSocket(`${node.socketUrl}/websocket?vsn=2.0.0&apikey=whatever`, { perMessageDeflate: true })
    await new Promise((resolve, reject) => socket.on("open", resolve).on("error", reject))
    socket.terminate()
  })
})
