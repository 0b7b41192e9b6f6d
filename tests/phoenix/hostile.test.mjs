// Clients that mean harm or are broken. After each of them the server is up, its memory is where it was,
// and two bystanders have noticed nothing.

import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import net from "node:net"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, connectRaw, counted, fresh, holds, joinAs, until } from "./client.mjs"
import { startNode } from "./server.mjs"

const MB = 1 << 20

/** A bare TCP connection that keeps what it hears. */
async function connectTcp(node) {
  const socket = net.connect(node.port, "127.0.0.1")
  await once(socket, "connect")
  const tcp = { socket, heard: Buffer.alloc(0), ended: false }
  socket.on("data", (data) => (tcp.heard = Buffer.concat([tcp.heard, data])))
  socket.on("error", () => (tcp.ended = true))
  socket.on("close", () => (tcp.ended = true))
  socket.on("end", () => (tcp.ended = true))
  /** Writes and waits until it is out of our hands, or the connection is over. */
  tcp.write = (data) =>
    new Promise((resolve) => {
      if (socket.destroyed || !socket.writable) return resolve()
      socket.once("close", resolve)
      socket.write(data, () => {
        socket.off("close", resolve)
        resolve()
      })
    })
  tcp.close = () => socket.destroy()
  return tcp
}

/** A WebSocket on which we write every byte ourselves. */
async function upgradeTcp(node) {
  const tcp = await connectTcp(node)
  await tcp.write(
    "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
  )
  await until(() => tcp.heard.includes("\r\n\r\n"), "the upgrade is answered")
  assert.match(tcp.heard.toString("latin1"), /^HTTP\/1\.1 101 /)
  return tcp
}

/** The header of a client's frame; an all-zero mask leaves the payload as it is. */
function header(opcode, length, { fin = true, masked = true } = {}) {
  const first = (fin ? 0x80 : 0) | opcode
  const mask = masked ? 0x80 : 0
  let bytes
  if (length < 126) bytes = Buffer.from([first, mask | length])
  else if (length < 65_536) bytes = Buffer.from([first, mask | 126, length >> 8, length & 255])
  else {
    bytes = Buffer.alloc(10)
    bytes[0] = first
    bytes[1] = mask | 127
    bytes.writeBigUInt64BE(BigInt(length), 2)
  }
  return masked ? Buffer.concat([bytes, Buffer.alloc(4)]) : bytes
}
const frame = (opcode, payload, options) => Buffer.concat([header(opcode, payload.length, options), Buffer.from(payload)])

describe("hostile clients", () => {
  let node, room, witness, friend
  before(async () => (node = await startNode({ ROLLCALL_MAX_MESSAGE_RATE: "10000" })))
  after(() => node?.stop())

  const bystanders = async () => {
    room = fresh("quiet")
    witness = await joinAs(node, room, "witness")
    friend = await joinAs(node, room, "friend")
    for (const me of [witness, friend]) await until(() => me.sees("witness", "friend"), "both are there")
  }
  const unharmed = async () => {
    assert.ok(node.running(), node.log())
    assert.equal((await node.get("/healthz")).status, 200)
    for (const me of [witness, friend]) {
      assert.deepEqual([...me.ledger.moves].sort(), ["friend came", "witness came"])
      assert.deepEqual(me.closes, [])
    }
    await counted(node, room, 2)
    const newcomer = await joinAs(node, room, "newcomer")
    await until(() => witness.sees("witness", "friend", "newcomer") && newcomer.sees("witness", "friend", "newcomer"), "and others can come")
    assert.ok(!/panicked/.test(node.log()), node.log())
  }
  const hostile = (name, attack) =>
    test(name, async () => {
      await bystanders()
      await attack()
      await unharmed()
    })
  afterEach(closeAll)

  hostile("text that is no frame: the socket lives on", async () => {
    const raw = await connectRaw(node)
    const { ref } = await raw.join(fresh(), { user_id: "ada" })
    const texts = [
      "",
      "hello",
      "{",
      "[",
      "[]",
      "[1,2,3]",
      "null",
      "{}",
      '"text"',
      "[null,null,null,null,null]",
      '[{},[],1,"phx_join",{}]',
      `["${ref}","1","t","phx_join"]`,
      `["${ref}","1","t","phx_join","payload"]`,
      '["1","1","","phx_join",{}]',
      '{"topic":1,"event":2,"payload":3,"ref":4}',
      '{"topic":"t"}',
      "[".repeat(60_000),
      `["1","1","t","phx_join",${'{"a":'.repeat(10_000)}1${"}".repeat(10_000)}]`,
      `["1","1","t","phx_join",{"user_id":1e999}]`,
      `["1","1","t","phx_join",{"user_id":"\\ud800"}]`,
      '["1","1","phoenix","phx_join",{}]',
      `["1","1","t","presence_state",{"a":{"metas":[]}}]`,
      `["1","1","t","${"e".repeat(5000)}",{}]`,
      `[${"9".repeat(5000)},1,"t","phx_join",{}]`,
    ]
    for (const text of texts) {
      raw.write(text)
      await raw.heartbeat()
    }
    assert.equal(raw.ended, null)
  })

  hostile("bytes that are no frame", async () => {
    const raw = await connectRaw(node)
    for (let i = 0; i < 50; i++) {
      raw.socket.send(randomBytes(i * 7))
      await raw.heartbeat()
    }
    assert.equal(raw.ended, null)
  })

  hostile("frames that break WebSocket's own rules end their connection", async () => {
    const broken = {
      "text that is not UTF-8": frame(1, [0xc3, 0x28, 0xff]),
      "an unknown opcode": frame(3, "x"),
      "reserved bits": Buffer.concat([Buffer.from([0xf1, 0x81]), Buffer.alloc(4), Buffer.from("x")]),
      "a continuation of nothing": frame(0, "x"),
      "a ping in pieces": frame(9, "x", { fin: false }),
      "a ping that is too long": frame(9, "x".repeat(126)),
      "a frame that is not masked": frame(1, "[]", { masked: false }),
      "a length beyond all numbers": Buffer.concat([Buffer.from([0x81, 0xff]), Buffer.alloc(8, 0xff), Buffer.alloc(4)]),
    }
    for (const [what, bytes] of Object.entries(broken)) {
      const tcp = await upgradeTcp(node)
      await tcp.write(bytes)
      await until(() => tcp.ended || tcp.heard.includes(Buffer.from([0x88])), `ended after ${what}`, 5000)
      tcp.close()
    }
  })

  hostile("a frame announced as 200 MB costs no memory and ends the connection", async () => {
    const before = node.rss()
    const tcps = []
    for (let i = 0; i < 5; i++) tcps.push(await upgradeTcp(node))
    let most = 0
    for (const tcp of tcps) {
      await tcp.write(header(2, 200 * MB))
      for (let sent = 0; sent < 30 && !tcp.ended; sent++) {
        await Promise.race([tcp.write(Buffer.alloc(MB)), until(() => tcp.ended, "ended", 1000).catch(() => {})])
        most = Math.max(most, node.rss())
      }
    }
    for (const tcp of tcps) await until(() => tcp.ended, "the connection ends", 5000)
    assert.ok(most - before < 20 * MB, `${((most - before) / MB).toFixed(1)} MB more`)
  })

  hostile("a message in fragments, over the limit all together, ends its connection", async () => {
    const before = node.rss()
    const raw = await connectRaw(node)
    raw.socket.on("error", () => {})
    for (let i = 0; i < 3000 && !raw.ended && raw.socket.readyState === 1; i++) {
      await new Promise((resolve) => raw.socket.send("x".repeat(8192), { fin: false }, resolve))
    }
    const { code } = await raw.end()
    assert.ok([1009, 1006, 1002, 1008].includes(code), `closed with ${code}`)
    assert.ok(node.rss() - before < 20 * MB)
  })

  hostile("a message in fragments within the limit is one message", async () => {
    const raw = await connectRaw(node)
    const text = JSON.stringify([null, "1", "phoenix", "heartbeat", { pad: "x".repeat(30_000) }])
    for (let at = 0; at < text.length; at += 1000) raw.socket.send(text.slice(at, at + 1000), { fin: at + 1000 >= text.length })
    assert.equal((await raw.reply("1")).payload.status, "ok")
  })

  hostile("a message over the limit ends its connection or is refused", async () => {
    const raw = await connectRaw(node)
    raw.socket.on("error", () => {})
    raw.send("1", "1", fresh(), "phx_join", { pad: "x".repeat(70_000) })
    await until(() => raw.ended || raw.frames.some((one) => one.payload?.status === "error"), "an end or an error")
    if (raw.ended) assert.notEqual(raw.ended.code, 1000)
  })

  hostile("endless tiny fragments, empty ones too", async () => {
    const before = node.rss()
    for (const size of [1, 0]) {
      const tcp = await upgradeTcp(node)
      await tcp.write(frame(1, "[", { fin: false }))
      const piece = frame(0, " ".repeat(size), { fin: false })
      const pieces = Buffer.concat(Array.from({ length: 1000 }, () => piece))
      for (let i = 0; i < 200 && !tcp.ended; i++) await Promise.race([tcp.write(pieces), until(() => tcp.ended, "ended", 1000).catch(() => {})])
      if (size > 0) await until(() => tcp.ended, "over the limit it ends", 5000)
      tcp.close()
    }
    assert.ok(node.rss() - before < 20 * MB)
  })

  hostile("a flood of pings and of messages costs others nothing", async () => {
    const tcp = await upgradeTcp(node)
    const pings = Buffer.concat(Array.from({ length: 1000 }, () => frame(9, "ping")))
    for (let i = 0; i < 50 && !tcp.ended; i++) await Promise.race([tcp.write(pings), until(() => tcp.ended, "ended", 1000).catch(() => {})])
    tcp.close()
    const raw = await connectRaw(node)
    raw.socket.on("error", () => {})
    for (let i = 0; i < 20_000 && raw.socket.readyState === 1; i++) raw.send(null, String(i), "phoenix", "heartbeat", {})
    const began = Date.now()
    assert.equal((await node.get("/healthz")).status, 200)
    assert.ok(Date.now() - began < 2000, "others are still answered")
  })

  hostile("500 sockets that come and drop at once are gone after the grace", async () => {
    const storm = fresh("storm")
    const sockets = await Promise.all(Array.from({ length: 500 }, () => connectRaw(node)))
    await Promise.all(sockets.map((raw, i) => raw.join(storm, { user_id: `u${i}` })))
    await counted(node, storm, 500, 500, 10_000)
    sockets.forEach((raw) => raw.socket._socket.resetAndDestroy())
    await counted(node, storm, 0, 0, 15_000)
  })

  hostile("500 half-done handshakes", async () => {
    const tcps = await Promise.all(Array.from({ length: 500 }, () => connectTcp(node)))
    await Promise.all(tcps.map((tcp, i) => tcp.write(i % 2 ? "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: x\r\nUpgr" : "")))
    const began = Date.now()
    assert.equal((await node.get("/healthz")).status, 200)
    assert.ok(Date.now() - began < 2000, "others are still answered")
    tcps.forEach((tcp) => tcp.close())
  })

  hostile("HTTP that is none", async () => {
    const before = node.rss()
    const requests = [
      randomBytes(2000),
      "\r\n\r\n\r\n",
      "GET / HTTP/9.9\r\n\r\n",
      "GET /\u0000 HTTP/1.1\r\nHost: x\r\n\r\n",
      `GET /${"x".repeat(200_000)} HTTP/1.1\r\nHost: x\r\n\r\n`,
      `GET / HTTP/1.1\r\nHost: x\r\n${"X-Filler: ".concat("y".repeat(1000), "\r\n").repeat(500)}\r\n`,
      "POST /v1/presence/counts HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
      "POST /v1/presence/counts HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
      "POST /v1/presence/counts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nzz\r\n\r\n",
      "POST /v1/presence/counts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
      "GET /socket/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
      "GET /socket/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 99\r\nSec-WebSocket-Key: x\r\n\r\n",
      "GET /socket/websocket HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    for (const bytes of requests) {
      const tcp = await connectTcp(node)
      await tcp.write(bytes)
      await until(() => tcp.ended || tcp.heard.length > 0, "answered or ended", 1500).catch(() => {})
      assert.doesNotMatch(tcp.heard.toString("latin1"), /^HTTP\/1\.[01] (5|101)/, bytes.toString().slice(0, 80))
      tcp.close()
    }
    const big = await node.post("/v1/presence/counts", JSON.stringify({ channels: ["x".repeat(20 * MB)] })).catch((error) => error)
    assert.ok(big instanceof Error || [400, 413].includes(big.status), String(big.status))
    const deep = await node.post("/v1/presence/counts", "[".repeat(100_000))
    assert.ok([400, 413].includes(deep.status), String(deep.status))
    for (const path of ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/channels/../sessions", "//", "/?%"]) {
      const { status, text } = await node.get(path)
      assert.ok(status < 500 && !text.includes("root:"), `${path}: ${status}`)
    }
    assert.ok(node.rss() - before < 40 * MB)
  })
})

describe("a reader that stops reading", () => {
  let node
  before(async () => {
    node = await startNode({ ROLLCALL_MAX_OUTPUT_BYTES: "65536", ROLLCALL_MAX_PRESENCE_RATE: "1000", ROLLCALL_MAX_PRESENCE_BURST: "1000", ROLLCALL_MAX_MESSAGE_RATE: "100000" })
  })
  after(() => node?.stop())
  afterEach(closeAll)

  test("is put out, and others are undisturbed", async () => {
    const quiet = fresh("quiet")
    const witness = await joinAs(node, quiet, "witness")
    const friend = await joinAs(node, quiet, "friend")
    const rooms = Array.from({ length: 40 }, () => fresh("busy"))
    const stalled = await connectRaw(node)
    await stalled.join(quiet, { user_id: "stalled" })
    for (const room of rooms) assert.equal((await stalled.join(room, { observe: true })).status, "ok")
    await until(() => witness.sees("witness", "friend", "stalled"), "it is there")

    // Each busy channel has one member, who hears only itself: 8 KB an update, from 40 channels at once to the reader.
    const busy = []
    for (let i = 0; i < rooms.length; i += 2) {
      const raw = await connectRaw(node)
      const refs = []
      for (const room of rooms.slice(i, i + 2)) refs.push([room, (await raw.join(room, { user_id: "busy" })).ref])
      busy.push({ raw, refs })
    }
    const before = node.rss()
    stalled.socket._socket.pause()
    let n = 0
    let most = 0
    const flood = setInterval(() => {
      n++
      most = Math.max(most, node.rss())
      for (const { raw, refs } of busy) {
        raw.frames.length = 0
        for (const [room, ref] of refs) {
          if (raw.socket.readyState === 1) raw.send(ref, String(n), room, "presence", { type: "presence", event: "track", payload: { n, blob: randomBytes(1500).toString("hex") } })
        }
      }
    }, 20)
    try {
      await until(() => witness.sees("witness", "friend"), "it is put out", 45_000, witness.users)
    } finally {
      clearInterval(flood)
    }
    for (const { raw } of busy) assert.equal(raw.ended, null, "who reads stays")
    assert.deepEqual(witness.ledger.moves.filter((move) => !move.startsWith("stalled")).sort(), ["friend came", "witness came"])
    assert.deepEqual([witness.closes, friend.closes], [[], []])
    assert.ok(most - before < 40 * MB, `${((most - before) / MB).toFixed(1)} MB more`)
    await counted(node, quiet, 2)
    for (const room of rooms) await counted(node, room, 1)
    await holds(() => witness.sees("witness", "friend"), "and it stays that way", 500)
  })
})
