// What one observer was told of one channel, with the time of each word.
//
// A view has an epoch for each time its observer joined: a snapshot and the diffs after it. Snapshot and
// diffs are applied as the protocol says; what cannot be applied is a fault whatever the test is about.

import { now } from "./truth.mjs"

export class View {
  epochs = []
  faults = []

  constructor(name, node, channel) {
    Object.assign(this, { name, node, channel })
  }

  get epoch() {
    return this.epochs.at(-1)
  }

  /** A snapshot: the observer has joined, on `node`. */
  state(payload, node = this.node) {
    this.end()
    this.node = node
    const at = now()
    this.epochs.push({ node, begun: at, ended: null, refs: new Map(), tags: new Map() })
    for (const [user, { metas }] of Object.entries(payload)) for (const meta of metas) this.#in(user, meta, at)
  }

  diff({ joins, leaves }) {
    const at = now()
    const replaced = new Set()
    for (const [user, { metas }] of Object.entries(joins)) {
      for (const meta of metas) {
        if (meta.phx_ref_prev) replaced.add(meta.phx_ref_prev)
        this.#in(user, meta, at)
      }
    }
    for (const [user, { metas }] of Object.entries(leaves)) for (const meta of metas) this.#out(user, meta, at, replaced.has(meta.phx_ref))
  }

  /** The observer's connection has ended. */
  end() {
    if (this.epoch && !this.epoch.ended) this.epoch.ended = now()
  }

  isOpen() {
    return Boolean(this.epoch && !this.epoch.ended)
  }

  /** How many refs each tag has now. */
  tags() {
    const tags = {}
    for (const [tag, { refs }] of this.epoch?.tags ?? []) if (refs > 0) tags[tag] = refs
    return tags
  }

  #in(user, meta, at) {
    const { epoch } = this
    const { phx_ref: ref, tag } = meta
    if (!tag) return this.#fault(`shows ${user} with a meta of nobody's`)
    if (epoch.refs.has(ref)) return this.#fault(`ref ${ref} of ${tag} joined twice`)
    epoch.refs.set(ref, tag)
    if (!epoch.tags.has(tag)) epoch.tags.set(tag, { user, refs: 0, times: [], refTimes: [] })
    const story = epoch.tags.get(tag)
    if (story.user !== user) this.#fault(`${tag} is ${story.user} and ${user}`)
    story.refTimes.push({ at, what: "in", ref })
    if (++story.refs === 1) story.times.push({ in: at, out: null })
  }

  #out(user, { phx_ref: ref }, at, isReplaced) {
    const { epoch } = this
    const tag = epoch.refs.get(ref)
    if (!tag) return this.#fault(`ref ${ref} of ${user} left that was not there`)
    epoch.refs.delete(ref)
    const story = epoch.tags.get(tag)
    story.refTimes.push({ at, what: isReplaced ? "replaced" : "out", ref })
    if (--story.refs === 0) story.times.at(-1).out = at
  }

  #fault(what) {
    this.faults.push(`${this.name} in ${this.channel}: ${what}`)
  }
}
