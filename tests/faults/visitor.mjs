// A client whose every move is written into the truth: `real` ones are applications with the npm phoenix
// client, which comes back by itself when its socket breaks; raw ones send single frames and do not.

import { connectRaw, member } from "../phoenix/client.mjs"
import { now } from "./truth.mjs"
import { View } from "./view.mjs"

/**
 * `watches`: what it is told is audited. `observes`: it only watches, and is not present. `keyed`: it has
 * a resume key. `port`: instead of its node's own, for one who comes by a proxy.
 */
export class Visitor {
  /** "out", "coming", "in" or "gone" for good. */
  stage = "out"
  seats = []
  /** Close codes that this client did not ask for. */
  closes = []
  views = []

  constructor(world, { id, user, node, channels, real = false, watches = false, observes = false, keyed = false, port }) {
    Object.assign(this, { world, id, user, node, real, watches: watches || observes, observes, keyed, port })
    this.channels = real ? channels.slice(0, 1) : channels
    this.serial = 0
  }

  #meta = (seat) => ({ tag: seat.tag, ...(seat.updates > 0 && { n: seat.updates }) })
  /** What it joins with. The key is this life's own: who left and comes again is somebody new. */
  #payload = (seat) => ({ user_id: this.user, meta: this.#meta(seat), ...(this.keyed && { resume: `the key of ${seat.tag}` }) })

  /** Connects and joins all its channels. */
  async enter(node = this.node) {
    this.node = node
    this.stage = "coming"
    if (this.seats.length === 0 && !this.observes) {
      const life = ++this.serial
      this.seats = this.channels.map((channel) => this.world.truth.seat(channel, this.user, `${this.id}.${life}`, this.keyed))
    }
    await (this.real ? this.#enterReal() : this.#enterRaw())
  }

  #begin(seat, node) {
    seat.span = this.world.truth.begin(seat, node)
  }

  async #enterReal() {
    const { truth } = this.world
    const [seat] = this.seats
    this.#begin(seat, this.node)
    const me = member(this.node, seat.channel, () => this.#payload(seat), {
      reconnectAfterMs: (tries) => [10, 50, 100, 150, 200, 250, 500][tries - 1] ?? 500,
      rejoinAfterMs: (tries) => [50, 100, 200, 500][tries - 1] ?? 500,
    })
    this.me = me
    const view = this.watches && new View(`${this.id} (phoenix)`, this.node, seat.channel)
    if (view) this.views.push(view)
    let pending = []
    let stateOf = null
    // Copies, as they came: the client's own Presence changes the payloads.
    me.channel.on("presence_state", () => {
      const state = me.states.pop()
      if (!view) return
      view.state(state, this.node)
      stateOf = me.channel.joinRef()
      for (const diff of pending.splice(0)) view.diff(diff)
    })
    me.channel.on("presence_diff", () => {
      const diff = me.diffs.pop()
      if (!view || me.channel.state !== "joined") return
      if (stateOf === me.channel.joinRef()) view.diff(diff)
      else pending.push(diff)
    })
    // When its node is gone it tries the others in turn, as an application with a list of addresses does.
    const first = me.socket.endPointURL()
    const own = this.node
    let tries = 0
    me.socket.endPointURL = () => {
      const open = this.world.addresses()
      this.node = open[(open.indexOf(own) + ++tries) % open.length]
      return first.replace(`:${own.port}/`, `:${this.node.port}/`)
    }
    me.socket.onOpen(() => {
      if (seat.span.ended && this.stage !== "gone") this.#begin(seat, this.node)
    })
    me.socket.onClose((event) => {
      view && view.end()
      pending = []
      if (this.stage === "gone") return
      this.closes.push({ code: event.code, node: this.node, at: now() })
      truth.end(seat.span, this.node.killedAt ? "kill" : "closed")
    })
    const ok = () => {
      if (this.stage === "coming") this.stage = "in"
      if (!seat.span.ended) seat.span.acked ??= now()
    }
    // The first join and every one after a break are the same push.
    me.channel.joinPush.receive("ok", ok)
    await me.joined
  }

  async #enterRaw() {
    const { truth } = this.world
    let raw
    const joins = new Map()
    const onFrame = ({ topic, event, ref, payload, join_ref: joinRef }) => {
      if (event === "phx_reply" && joins.has(ref)) {
        const span = joins.get(ref)
        if (payload.status === "ok") span.acked ??= now()
        else truth.end(span, "leave")
        if (this.stage === "coming") this.stage = "in"
      }
      const view = this.views.find((one) => one.channel === topic)
      if (!view || (joinRef !== null && joinRef !== this.joinRefs?.get(topic))) return
      if (event === "presence_state") view.state(payload, this.node)
      if (event === "presence_diff") view.diff(payload)
    }
    try {
      raw = await connectRaw({ port: this.port ?? this.node.port }, { onFrame })
    } catch {
      this.stage = "gone"
      return
    }
    this.raw = raw
    this.joinRefs = new Map()
    raw.socket.on("close", (code) => {
      this.views.forEach((view) => view.end())
      if (this.raw !== raw || this.stage === "gone" || this.leaving) return
      this.closes.push({ code, node: this.node, at: now() })
      for (const seat of this.seats) truth.end(seat.span, this.node.killedAt ? "kill" : "closed")
      this.stage = "gone"
    })
    if (this.stage === "gone") return raw.close()
    if (this.watches && this.views.length === 0) {
      this.views = this.channels.map((channel) => new View(this.id, this.node, channel))
    }
    let ref = 0
    for (const channel of this.channels) {
      const seat = this.seats.find((one) => one.channel === channel)
      const mine = `${this.serial}-${++ref}`
      this.joinRefs.set(channel, mine)
      if (seat) {
        this.#begin(seat, this.node)
        joins.set(mine, seat.span)
      }
      const who = seat ? this.#payload(seat) : { user_id: this.id, observe: true }
      raw.send(mine, mine, channel, "phx_join", who)
    }
  }

  /** Shows another meta. */
  update() {
    if (this.stage !== "in") return
    const [seat] = this.seats
    if (!seat.span.acked || seat.span.ended) return
    seat.updates++
    if (this.real) this.me.channel.push("presence", { type: "presence", event: "track", payload: this.#meta(seat) })
    else this.#push(seat, "presence", { type: "presence", event: "track", payload: this.#meta(seat) })
  }

  /** Says that it leaves, and closes its socket when that was heard. */
  leave({ untrack = false } = {}) {
    if (this.stage !== "in") return
    const { truth } = this.world
    this.stage = "gone"
    for (const seat of this.seats) truth.end(seat.span, "leave")
    if (this.real) {
      const push = untrack
        ? this.me.channel.push("presence", { type: "presence", event: "untrack" })
        : this.me.channel.leave()
      for (const status of ["ok", "error", "timeout"]) push.receive(status, () => this.me.close())
    } else {
      for (const seat of this.seats) {
        if (untrack) this.#push(seat, "presence", { type: "presence", event: "untrack" })
        else this.#push(seat, "phx_leave", {})
      }
      // After what was sent: closing politely waits for the server to have read it.
      this.raw.socket.close()
    }
  }

  /** Its socket ends without a word, and it does not come back. */
  drop() {
    if (this.stage !== "in") return
    this.stage = "gone"
    for (const seat of this.seats) this.world.truth.end(seat.span, "drop")
    this.#terminate()
  }

  /** Its socket ends without a word, and it comes back after `ms` to `node`. */
  async bounce(node = this.node, ms = 0) {
    if (this.stage !== "in" || this.real) return
    for (const seat of this.seats) this.world.truth.end(seat.span, "drop")
    const old = this.raw
    this.raw = null
    this.stage = "coming"
    old.close()
    if (ms > 0) await new Promise((resolve) => setTimeout(resolve, ms))
    // It may have been closed meanwhile, by the end of the test.
    if (this.stage === "coming") await this.enter(node)
  }

  #push(seat, event, payload) {
    const joinRef = this.joinRefs.get(seat.channel)
    this.raw.send(joinRef, `p${this.world.nextNumber()}`, seat.channel, event, payload)
  }

  #terminate() {
    if (this.real) {
      const transport = this.me.socket.conn
      this.me.socket.disconnect()
      transport?.terminate()
    } else {
      this.raw?.close()
    }
  }

  /** The end of the test. */
  close() {
    this.stage = "gone"
    if (this.real) this.me?.close()
    else this.raw?.close()
  }
}
