// Two ways to be a client: `member` is an application that uses the real npm phoenix client, `connectRaw`
// sends and reads single frames. Both are watched by a ledger, which knows what a client may be told.

import assert from "node:assert/strict"
import { Presence, Socket } from "phoenix"
import WebSocket from "ws"
import { until } from "./server.mjs"

export { until, holds } from "./server.mjs"
export { WebSocket }

let number = 0
/** A name that no other test uses. */
export const fresh = (prefix = "room") => `${prefix}:${process.pid}-${++number}`

export const same = (a, b) => {
  try {
    assert.deepEqual(a, b)
    return true
  } catch {
    return false
  }
}

const opened = new Set()

/** Closes every client of the test, and fails if one of them was told something that cannot be true. */
export async function closeAll() {
  const faults = []
  for (const client of opened) {
    if (client.ledger) faults.push(...client.ledger.faults)
    client.close()
  }
  opened.clear()
  assert.deepEqual(faults, [], "what clients were told fits together")
}

/**
 * Applies snapshots and diffs in the order in which they came, and notes what does not fit: a ref that
 * joins twice or leaves unseen (guarantee G2). `moves` tells when a user, not a ref, came or went.
 */
export class Ledger {
  faults = []
  moves = []
  #who
  #users = new Map()
  #pending = []
  #joinRef = null

  constructor(who) {
    this.#who = who
  }

  state(state, joinRef) {
    const before = new Set(this.#users.keys())
    this.#users = new Map()
    for (const [user, { metas }] of Object.entries(state)) {
      const refs = new Set(metas.map((meta) => meta.phx_ref))
      if (refs.size !== metas.length || refs.has(undefined)) this.#fault("snapshot repeats or lacks a ref", user)
      if (metas.length === 0) this.#fault("snapshot with a user without metas", user)
      this.#users.set(user, refs)
    }
    this.#joinRef = joinRef
    this.#note(before)
    for (const diff of this.#pending.splice(0)) this.#apply(diff)
  }

  diff(diff, joinRef) {
    if (this.#joinRef === joinRef) this.#apply(diff)
    else this.#pending.push(diff)
  }

  /** Whether a user came or went, in order, such as `["u1 came", "u1 went"]`. */
  of = (user) => this.moves.filter((move) => move.startsWith(`${user} `))
  went = (user) => this.moves.includes(`${user} went`)

  #apply({ joins, leaves }) {
    const before = new Set(this.#users.keys())
    for (const [user, { metas }] of Object.entries(joins)) {
      const refs = this.#users.get(user) ?? new Set()
      for (const { phx_ref: ref } of metas) {
        if (refs.has(ref)) this.#fault("a ref joined twice", user, ref)
        refs.add(ref)
      }
      this.#users.set(user, refs)
    }
    for (const [user, { metas }] of Object.entries(leaves)) {
      const refs = this.#users.get(user) ?? new Set()
      for (const { phx_ref: ref } of metas) if (!refs.delete(ref)) this.#fault("a ref left that was not there", user, ref)
      if (refs.size === 0) this.#users.delete(user)
    }
    this.#note(before)
  }

  #note(before) {
    for (const user of this.#users.keys()) if (!before.has(user)) this.moves.push(`${user} came`)
    for (const user of before) if (!this.#users.has(user)) this.moves.push(`${user} went`)
  }

  #fault(...words) {
    this.faults.push(`${this.#who}: ${words.join(" ")}`)
  }
}

/** Old phoenix.js and realtime-js with vsn 1 write objects; today's serializer alone writes arrays. */
const objectFrames = {
  vsn: "1.0.0",
  encode: (message, done) => done(JSON.stringify(message)),
  decode: (frame, done) => done(JSON.parse(frame)),
}

/**
 * Starts to join `channel` with the real client and returns at once; `joined` is the answer.
 * `payload` is the join's payload, an object or a function; `options` go to the client's Socket.
 */
export function member(node, channel, payload = {}, { vsn = "2.0.0", ...options } = {}) {
  const socket = new Socket(node.socketUrl, {
    transport: WebSocket,
    ...(vsn === "1.0.0" ? objectFrames : { vsn }),
    ...options,
  })
  const phoenix = socket.channel(channel, payload)
  const ledger = new Ledger(`${JSON.stringify(typeof payload === "function" ? payload() : payload)} in ${channel}`)
  const me = { socket, channel: phoenix, ledger, states: [], diffs: [], replies: [], syncs: 0, closes: [] }

  phoenix.on("presence_state", (state) => {
    me.states.push(structuredClone(state))
    ledger.state(state, phoenix.joinRef())
  })
  phoenix.on("presence_diff", (diff) => {
    me.diffs.push(structuredClone(diff))
    // Until its join is answered, a client that joins again still hears the subscription it had before.
    if (phoenix.state === "joined") ledger.diff(diff, phoenix.joinRef())
  })
  me.presence = new Presence(phoenix)
  me.presence.onSync(() => me.syncs++)
  socket.onClose((event) => me.closes.push(event.code))

  /** `{user: [meta, …]}` as an application sees it, without refs. */
  me.roster = () => {
    const roster = {}
    for (const [user, { metas }] of Object.entries(me.presence.state)) {
      roster[user] = metas.map(({ phx_ref: _, phx_ref_prev: __, ...meta }) => meta)
    }
    return roster
  }
  me.users = () => Object.keys(me.presence.state).sort()
  me.sees = (...users) => same(me.users(), [...users].sort())
  me.refs = (user) => (me.presence.state[user]?.metas ?? []).map((meta) => meta.phx_ref).sort()
  /** Diffs that name the user. */
  me.diffsOf = (user) => me.diffs.filter((diff) => diff.joins[user] || diff.leaves[user])
  me.push = (event, body) =>
    new Promise((resolve) => {
      const push = phoenix.push(event, body)
      for (const status of ["ok", "error", "timeout"]) push.receive(status, (response) => resolve({ status, response }))
    })
  me.track = (meta) => me.push("presence", { type: "presence", event: "track", payload: meta })
  me.untrack = () => me.push("presence", { type: "presence", event: "untrack" })
  /** The transport dies; the client will come back by itself. */
  me.reset = () => socket.conn._socket.resetAndDestroy()
  /** The page is gone: no leave, and the client does not come back. */
  me.vanish = () => {
    const transport = socket.conn
    opened.delete(me)
    socket.disconnect()
    transport?.terminate()
    assert.deepEqual(ledger.faults, [])
  }
  me.close = () => socket.disconnect()
  opened.add(me)
  socket.connect()
  me.joined = new Promise((resolve) => {
    const push = phoenix.join()
    for (const status of ["ok", "error", "timeout"]) {
      push.receive(status, (response) => {
        me.replies.push({ status, response, at: Date.now() })
        resolve({ status, response })
      })
    }
  })
  return me
}

/** A user who is in the channel and has the roster. */
export async function joinAs(node, channel, user, { meta, observe, resume, ...options } = {}) {
  const payload = { ...(user !== undefined && { user_id: user }), ...(meta && { meta }), ...(observe && { observe }), ...(resume && { resume }) }
  const me = member(node, channel, payload, options)
  const { status, response } = await me.joined
  assert.equal(status, "ok", `${user} joins ${channel}: ${JSON.stringify(response)}`)
  await until(() => me.states.length > 0, `${user} gets the roster of ${channel}`)
  return me
}

/** What the HTTP interface counts, for comparing. */
export async function count(node, channel, headers) {
  const { status, json } = await node.get(`/v1/channels/${encodeURIComponent(channel)}/presence/count`, headers)
  assert.equal(status, 200)
  return { online: json.online, connections: json.connections }
}

/** Waits until HTTP counts so many users on so many connections. */
export const counted = (node, channel, online, connections = online, ms = 5000) =>
  until(
    async () => same(await count(node, channel), { online, connections }),
    `${channel} counts ${online} online on ${connections} connections`,
    ms,
    () => count(node, channel),
  )

/**
 * Opens a socket for single frames. Refused upgrades reject with an error that has `status`, `headers`
 * and `body`.
 * `form` is how it writes frames: "array" or "object"; what it reads tells for itself. `onFrame` is called
 * with each frame as it comes, and then none is kept.
 */
export function connectRaw(node, { query = { vsn: "2.0.0" }, form = "array", protocols, headers, path = "/socket/websocket", url, onFrame, ...options } = {}) {
  const search = new URLSearchParams(query).toString()
  const address = url ?? `ws://127.0.0.1:${node.port}${path}${search && `?${search}`}`
  const socket = new WebSocket(address, protocols ?? [], { headers, perMessageDeflate: false, handshakeTimeout: 10_000, ...options })
  const raw = { socket, frames: [], binaries: [], ended: null, upgrade: null }
  const take = onFrame ?? ((frame) => raw.frames.push(frame))
  let ref = 100
  socket.on("upgrade", (response) => (raw.upgrade = response))
  socket.on("close", (code, reason) => (raw.ended = { code, reason: reason.toString() }))
  socket.on("message", (data, isBinary) => {
    if (isBinary) return raw.binaries.push(data)
    const frame = JSON.parse(data)
    if (Array.isArray(frame)) {
      const [join_ref, ref, topic, event, payload] = frame
      take({ form: "array", text: data.toString(), join_ref, ref, topic, event, payload })
    } else {
      take({ form: "object", text: data.toString(), ...frame })
    }
  })

  raw.write = (text) => socket.send(text)
  raw.send = (join_ref, ref, topic, event, payload) =>
    raw.write(JSON.stringify(form === "array" ? [join_ref, ref, topic, event, payload] : { topic, event, payload, ref, join_ref }))
  /** Frames of one topic and event, or those that `test` picks. */
  raw.got = (topic, event) => raw.frames.filter((frame) => frame.topic === topic && (!event || frame.event === event))
  raw.reply = (ref, ms = 5000) =>
    until(
      () => raw.frames.find((frame) => frame.event === "phx_reply" && frame.ref === ref),
      `a reply to ref ${ref}`,
      ms,
      () => ({ ended: raw.ended, last: raw.frames.slice(-3) }),
    )
  raw.call = async (topic, event, payload, joinRef = null) => {
    const mine = String(++ref)
    raw.send(event === "phx_join" ? mine : joinRef, mine, topic, event, payload)
    const { payload: answer } = await raw.reply(mine)
    return { ...answer, ref: mine }
  }
  raw.join = (topic, payload) => raw.call(topic, "phx_join", payload)
  raw.heartbeat = async () => {
    const { status, response } = await raw.call("phoenix", "heartbeat", {})
    assert.deepEqual({ status, response }, { status: "ok", response: {} })
  }
  raw.end = (ms = 5000) => until(() => raw.ended, "the server ends the connection", ms)
  raw.close = () => socket.terminate()
  opened.add(raw)

  return new Promise((resolve, reject) => {
    socket.on("open", () => resolve(raw))
    socket.on("error", (error) => reject(error))
    socket.on("unexpected-response", (call, response) => {
      opened.delete(raw)
      const parts = []
      response.on("data", (part) => parts.push(part))
      response.on("end", () => {
        const body = Buffer.concat(parts).toString()
        const error = new Error(`upgrade refused: ${response.statusCode} ${body}`)
        reject(Object.assign(error, { status: response.statusCode, headers: response.headers, body }))
        call.destroy()
      })
    })
  })
}

/** The HTTP status with which an upgrade is refused. */
export async function refused(node, options) {
  try {
    await connectRaw(node, options)
  } catch (error) {
    if (error.status) return error
    throw error
  }
  throw new Error("the upgrade was not refused")
}
