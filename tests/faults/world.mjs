// A small world for one fault: Redis, nodes, people who stay, people who come and go, and an observer on
// every node; and the auditor, which compares what each of them was told with the truth.

import assert from "node:assert/strict"
import { appendFileSync } from "node:fs"
import { same, until } from "../phoenix/client.mjs"
import { startRedis } from "../phoenix/redis.mjs"
import { startNode } from "../phoenix/server.mjs"
import { Audit } from "./audit.mjs"
import { Churn } from "./churn.mjs"
import { startProxy } from "./proxy.mjs"
import { SEED } from "./random.mjs"
import { Truth, now } from "./truth.mjs"
import { Visitor } from "./visitor.mjs"

export { until } from "../phoenix/client.mjs"
export { now } from "./truth.mjs"

/** Short lives, so that a fault of seconds is longer than they are. */
const SHORT = { ROLLCALL_PRESENCE_TTL_SECONDS: "6", ROLLCALL_NODE_TTL_SECONDS: "3", ROLLCALL_GRACE_SECONDS: "1" }
/** The contract's own times. */
export const DEFAULTS = { ROLLCALL_PRESENCE_TTL_SECONDS: "60", ROLLCALL_NODE_TTL_SECONDS: "10", ROLLCALL_GRACE_SECONDS: "2" }

/** A test: `story` happens in a world of its own, which is audited and taken down whatever happens. */
export const inWorld = (options, story) => async (t) => {
  const world = await World.start(t, options)
  try {
    try {
      await world.settleIn(options)
      await story(world, t)
    } catch (error) {
      world.faults.unshift(error.stack)
    }
    world.check()
  } finally {
    await world.stop()
  }
}

/** As ARCHITECTURE.md says: these characters are percent-encoded inside keys. */
const encode = (name) => name.replace(/[%:{}\u0000-\u001f\u007f]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`)

/** How late timers of this very process fire: that much of a delay is not the server's. */
class Lag {
  #late = []
  #timer
  constructor() {
    let expected = now() + 20
    this.#timer = setInterval(() => {
      const late = now() - expected
      if (late > 10) this.#late.push({ at: now(), late })
      expected = now() + 20
    }, 20)
    this.#timer.unref()
  }
  between = (from, to) => Math.max(0, ...this.#late.filter(({ at, late }) => at >= from && at - late <= to).map(({ late }) => late))
  worst = () => this.between(-Infinity, Infinity)
  stop = () => clearInterval(this.#timer)
}

export class World {
  nodes = []
  visitors = []
  observers = []
  faults = []
  measured = []
  #number = 0

  /**
   * `nodes` of them on one Redis, each by a proxy of its own if `proxied`. `redis` are the options of
   * `startRedis`, `env` settings of the nodes. People come later: `settleIn`.
   */
  static async start(t, { nodes = 3, proxied = false, redis = {}, env = {}, nodeEnv = () => ({}), channels = 2 } = {}) {
    const world = new World()
    world.name = t.name
    world.env = { ...SHORT, ...env }
    const seconds = (name) => Number(world.env[name])
    world.presenceTtl = seconds("ROLLCALL_PRESENCE_TTL_SECONDS") * 1000
    world.lease = seconds("ROLLCALL_NODE_TTL_SECONDS") * 1000
    world.grace = seconds("ROLLCALL_GRACE_SECONDS") * 1000
    // One heartbeat, and what connecting again takes at most: pause, connection, reading.
    world.converge = world.presenceTtl / 3 + 4000
    // The lease, a look at it each second, and room for a slow machine: 15 s with the default lease.
    const lateness = (at) => world.lag.between(at - 1500, at)
    world.truth = new Truth({ grace: world.grace, converge: world.converge, killed: world.lease + 5000, lease: world.lease, lateness })
    world.channels = Array.from({ length: channels }, (_, i) => `room:${i + 1}`)
    world.lag = new Lag()
    world.proxied = proxied
    world.nodeEnv = nodeEnv
    t.diagnostic(`seed ${SEED}: replay with ROLLCALL_FAULT_SEED=${SEED}`)
    try {
      world.redis = await startRedis(redis)
      await Promise.all(Array.from({ length: nodes }, (_, i) => world.addNode(i)))
    } catch (error) {
      await world.stop()
      throw error
    }
    return world
  }

  nextNumber = () => ++this.#number

  /** Starts a node, with an observer once it is there. */
  async addNode(at = this.nodes.length, { observed = false } = {}) {
    const proxy = this.proxied ? await startProxy(this.redis.port) : null
    const server = await startNode({ REDIS_URL: proxy?.url ?? this.redis.url, ...this.env, ...this.nodeEnv(at) })
    const node = Object.assign(server, { name: `n${at + 1}`, proxy, killedAt: null, draining: false, logMark: 0 })
    node.id = (await node.get("/readyz")).json.node
    this.nodes[at] = node
    if (observed) await this.observe(node)
    return node
  }

  async observe(node) {
    const observer = new Visitor(this, { id: `observer on ${node.name}`, node, channels: this.channels, observes: true })
    this.observers.push(observer)
    await observer.enter()
    await until(() => observer.views.length > 0 && observer.views.every((view) => view.isOpen()), `${observer.id} gets the rosters`)
  }

  /**
   * Observers, people who stay (real clients and raw ones, some with connections on several nodes), and the
   * churn. Unless `shared`, there is no Redis yet and every node knows only its own.
   */
  async settleIn({ stayers = 2, churn = true, shared = true } = {}) {
    if (shared) await until(async () => (await Promise.all(this.nodes.map((node) => this.says(node)))).every((said) => said.redis === "up"), "every node has its Redis", 15_000)
    await Promise.all(this.nodes.map((node) => this.observe(node)))
    const coming = []
    for (const [at, node] of this.nodes.entries()) {
      for (let i = 0; i < stayers; i++) {
        const channel = this.channels[i % this.channels.length]
        coming.push(this.visitor({ id: `stay-${node.name}-${i}`, user: `stays ${node.name} ${i}`, node, channels: [channel], real: true, watches: true, keyed: i % 2 === 0 }))
      }
      // One user with a connection on every node.
      coming.push(this.visitor({ id: `many-${node.name}`, user: "many: %ü", node, channels: this.channels, real: at === 0, watches: at === 0, keyed: at === 1 }))
    }
    this.stayers = coming
    await Promise.all(coming.map((one) => one.enter()))
    if (shared) await this.settle({ what: "at the beginning", ms: 10_000 })
    this.churn = new Churn(this)
    if (churn) {
      this.churn.start()
      await this.churn.steps(60)
    }
  }

  visitor(options) {
    const visitor = new Visitor(this, options)
    this.visitors.push(visitor)
    return visitor
  }

  /** The nodes a client may connect to. */
  addresses = () => this.nodes.filter((node) => !node.killedAt && !node.draining)

  /** `kill -9`. */
  async kill(node) {
    node.killedAt = now()
    this.truth.died(node)
    await node.stop("SIGKILL")
    this.retire(node)
  }

  /** SIGTERM, to its end. */
  async term(node) {
    node.draining = true
    const how = await node.stop("SIGTERM")
    this.retire(node)
    return how
  }

  retire(node) {
    this.gone ??= []
    this.gone.push(node)
    this.nodes = this.nodes.filter((one) => one !== node)
  }

  /** What a node says of itself. */
  async says(node) {
    const { status, json } = await node.get("/readyz")
    return { http: status, ...json }
  }

  async metric(node, name) {
    const { text } = await node.get("/metrics")
    const found = new RegExp(`^rollcall_${name}(?:_total)? (\\S+)`, "m").exec(text)
    assert.ok(found, `there is a metric ${name}`)
    return Number(found[1])
  }

  /** From here on `operator` looks for log lines. */
  mark() {
    for (const node of this.nodes) node.logMark = node.log().length
  }

  /**
   * What an operator sees at `node` within `ms`: parts of /readyz, the names of problems there, metrics (numbers or
   * conditions), a log line.
   */
  async operator(node, { ready = {}, problems = [], metrics = {}, log }, ms = 12_000) {
    const seen = {}
    await until(
      async () => {
        seen.ready = await this.says(node)
        const named = seen.ready.problems.map(({ what }) => what)
        return Object.entries(ready).every(([name, value]) => seen.ready[name] === value) && problems.every((name) => named.includes(name))
      },
      `/readyz of ${node.name} says ${JSON.stringify(ready)} and ${JSON.stringify(problems)}`,
      ms,
      () => seen.ready,
    )
    for (const [name, wanted] of Object.entries(metrics)) {
      await until(
        async () => {
          seen[name] = await this.metric(node, name)
          return typeof wanted === "function" ? wanted(seen[name]) : seen[name] === wanted
        },
        `metric ${name} of ${node.name} is as it should (${wanted})`,
        ms,
        () => seen[name],
      )
    }
    if (log) await until(() => log.test(node.log().slice(node.logMark)), `${node.name} logs ${log}`, ms, () => node.log().slice(node.logMark).slice(-1500))
  }

  HEALTHY = { ready: { http: 200, status: "ready", redis: "up", degraded: false }, metrics: { redis_up: 1 }, log: /Redis is there/ }
  DEGRADED = { ready: { http: 200, status: "ready", redis: "down", degraded: true }, problems: ["redis_away"], metrics: { redis_up: 0 }, log: /redis_away/ }

  /** The fault is over: everything must be equal soon, and stay so while life goes on. */
  async recover(healed, { steps = 25 } = {}) {
    await this.churn.stop()
    await this.settle({ since: healed })
    this.churn.start()
    await this.churn.steps(steps)
    await this.churn.stop()
    await this.settle({ what: "in the end" })
  }

  /** Every view of those who are connected. */
  views = () => [...this.observers, ...this.visitors].flatMap((one) => one.views)

  /**
   * Waits until nothing is under way any more and everything agrees with the truth: every view, REST on every
   * node, and Redis. `since` is when the fault ended; what it took from then is guarantee G3.
   */
  async settle({ what = "after the fault", ms = this.converge, since = null } = {}) {
    const from = since ?? now()
    let wrong = "nothing yet"
    const left = () => Math.max(1, ms - (now() - from))
    try {
      await until(() => (wrong = this.truth.isMoving() ? "somebody is still joining" : this.#wrongView()) === null, "views", left())
      const views = now()
      await until(async () => (wrong = await this.#wrongStore()) === null, "stores", left() + 1000)
      if (since !== null) this.measure("G3 convergence: every view", views - since, this.converge)
      if (since !== null) this.measure("G3 convergence: REST and Redis too", now() - since, this.converge + 1000)
    } catch (error) {
      this.faults.push(`${what}, not equal within ${Math.round(ms)} ms: ${wrong}${error.message.includes("not within") ? "" : ` (${error.message})`}`)
    }
  }

  #wrongView() {
    for (const channel of this.channels) {
      const expected = Object.fromEntries(this.truth.present(channel).map(({ seat }) => [seat.tag, 1]))
      for (const view of this.views()) {
        if (view.channel !== channel || !view.isOpen()) continue
        if (!same(view.tags(), expected)) return `${view.name} in ${channel} sees ${difference(view.tags(), expected)}`
      }
    }
    return null
  }

  async #wrongStore() {
    const dead = (this.gone ?? []).map((node) => node.id)
    for (const channel of this.channels) {
      const present = this.truth.present(channel)
      const expected = {}
      for (const { seat } of present) (expected[seat.user] ??= []).push(seat.tag)
      for (const tags of Object.values(expected)) tags.sort()
      const counts = { channel, online: Object.keys(expected).length, connections: present.length }
      for (const node of this.nodes) {
        const path = `/v1/channels/${encodeURIComponent(channel)}/presence`
        const { json: count } = await node.get(`${path}/count`)
        if (!same(count, counts)) return `${node.name} counts ${JSON.stringify(count)}, not ${JSON.stringify(counts)}`
        const { json } = await node.get(`${path}?limit=1000`)
        const members = Object.fromEntries(json.members.map(({ user, metas }) => [user, metas.map(({ tag }) => tag).sort()]))
        if (!same(members, expected)) return `${node.name} lists ${difference(members, expected)}`
      }
      const key = `presence:channel:${encode(channel)}`
      const users = (await this.redis.call("SMEMBERS", `${key}:users`)).sort()
      if (!same(users, Object.keys(expected).sort())) return `Redis has ${JSON.stringify(users)}, not ${JSON.stringify(Object.keys(expected).sort())}`
      for (const user of users) {
        const fields = Object.entries(await this.redis.hash(`${key}:user:${encode(user)}`))
        const found = fields.map(([field, value]) => [JSON.parse(value).meta.tag, field.split(":")[0]]).sort()
        const wanted = present.filter(({ seat }) => seat.user === user).map(({ seat, span }) => [seat.tag, span.node.id]).sort()
        if (!same(found, wanted)) return `the hash of ${user} has ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`
      }
      const known = await this.redis.call("SMEMBERS", "presence:nodes")
      const versions = Object.keys(await this.redis.hash(`${key}:nodes`))
      for (const id of [...known, ...versions]) if (dead.includes(id)) return `node ${id} is gone and Redis still knows it`
    }
    for (const [key, ttl] of await this.#lives()) {
      if (ttl === -1) return `${key} has no TTL`
      if (dead.some((id) => key.startsWith(`presence:node:${id}`))) return `${key} is a dead node's`
    }
    return null
  }

  /** Every presence key with its remaining milliseconds. */
  async #lives() {
    const script = "local found = {} for _, key in ipairs(redis.call('KEYS', 'presence:*')) do found[#found + 1] = {key, redis.call('PTTL', key)} end return found"
    return this.redis.call("EVAL", script, 0)
  }

  /** Notes a measured time or number, for docs/guarantees.md; over its limit it is a fault. */
  measure(guarantee, value, limit, unit = "ms") {
    this.measured.push({ guarantee, value, limit, unit })
    if (value > limit) this.faults.push(`${guarantee}: ${Math.round(value)} ${unit}, the limit is ${limit}`)
  }

  /** Compares everything that anybody was told with the truth, and fails the test if something does not fit. */
  check() {
    const audit = new Audit(this)
    this.faults.push(...audit.run())
    this.measured.push(...audit.measured)
    this.measured.push({ guarantee: "how late timers of the test process itself were", value: this.lag.worst(), limit: null, unit: "ms" })
    this.#report()
    const shown = this.faults.slice(0, 12)
    if (this.faults.length > shown.length) shown.push(`… and ${this.faults.length - shown.length} more`)
    assert.deepEqual(shown, [], `seed ${SEED}: everybody was told the truth in time`)
  }

  #report() {
    const file = process.env.ROLLCALL_FAULT_REPORT
    if (!file) return
    const worst = new Map()
    for (const one of this.measured) {
      const key = `${one.guarantee} ${one.limit}`
      const held = worst.get(key)
      const samples = (held?.samples ?? 0) + (one.samples ?? 1)
      if (!held) worst.set(key, { ...one, samples })
      else if (one.value > held.value) Object.assign(held, one, { samples })
      else held.samples = samples
    }
    const passed = this.faults.length === 0
    for (const one of worst.values()) appendFileSync(file, `${JSON.stringify({ ...one, test: this.name, seed: SEED, passed })}\n`)
  }

  async stop() {
    this.lag.stop()
    this.churn?.halt()
    for (const one of [...this.observers, ...this.visitors]) one.close()
    await Promise.all(this.nodes.map((node) => node.stop("SIGKILL")))
    for (const node of [...this.nodes, ...(this.gone ?? [])]) node.proxy?.close()
    await this.redis?.stop("SIGKILL")
  }
}

/** What one object has that the other has not, in words. */
function difference(found, expected) {
  const text = (value) => JSON.stringify(value)
  const more = Object.keys(found).filter((name) => !same(found[name], expected[name]))
  const less = Object.keys(expected).filter((name) => !(name in found))
  return `${more.map((name) => `${name}: ${text(found[name])} instead of ${text(expected[name]) ?? "nothing"}`).join(", ") || "nothing too much"}; missing: ${less.join(", ") || "none"}`
}
