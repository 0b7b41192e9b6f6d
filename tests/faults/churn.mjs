// People who come and go: at random, but the same for the same seed.

import { until } from "../phoenix/client.mjs"
import { SEED, random } from "./random.mjs"

/** How many are there at most, beside those who stay. */
const CROWD = 18

export class Churn {
  done = 0
  #timer = null
  #number = 0
  #crowd = []

  constructor(world) {
    this.world = world
    this.chance = random(SEED, world.name)
  }

  start() {
    const step = () => {
      this.#step()
      this.#timer = setTimeout(step, this.chance.whole(15, 70))
    }
    this.#timer = setTimeout(step, 0)
  }

  halt() {
    clearTimeout(this.#timer)
    this.#timer = null
  }

  /** Waits for so many more moves. */
  async steps(count) {
    const goal = this.done + count
    await until(() => this.done >= goal, `${count} moves of the churn`, 10_000 + count * 200)
  }

  /** No more moves; whoever is there stays. */
  async stop() {
    this.halt()
    await until(() => this.#crowd.every(({ stage }) => stage !== "coming"), "nobody is on the way", 15_000).catch(() => {})
  }

  #step() {
    const { chance, world } = this
    // The same number of draws at each step, so that a replay makes the same decisions.
    const draws = Array.from({ length: 6 }, chance.next)
    const pick = (list, draw) => list[Math.floor(draw * list.length)]
    this.done++
    this.#crowd = this.#crowd.filter(({ stage }) => stage !== "gone")
    const open = world.addresses().filter((node) => !node.stopped)
    const settled = this.#crowd.filter(({ stage }) => stage === "in")
    if (this.#crowd.length < CROWD * draws[5] || settled.length === 0) {
      if (open.length === 0 || this.#crowd.length >= CROWD * 2) return
      const id = `v${++this.#number}`
      const keyed = draws[4] < 0.5
      // Some share their user with others; of those without a key fewer, since these can be judged only as that user.
      const isShared = draws[0] < (keyed ? 1 : 0.4)
      const visitor = world.visitor({
        id,
        user: isShared ? `user ${Math.floor(draws[0] * 12)}` : `user of ${id}`,
        node: pick(open, draws[1]),
        channels: draws[2] < 0.3 ? world.channels : [pick(world.channels, draws[2])],
        real: draws[3] < 0.35,
        keyed,
      })
      this.#crowd.push(visitor)
      visitor.enter().catch((error) => world.faults.push(`${id}: ${error.stack}`))
      return
    }
    const visitor = pick(settled, draws[0])
    if (draws[1] < 0.3) visitor.leave({ untrack: draws[2] < 0.3 })
    else if (draws[1] < 0.5) visitor.drop()
    else if (draws[1] < 0.7 && open.length > 0) visitor.bounce(draws[2] < 0.5 ? pick(open, draws[3]) : undefined, draws[4] < 0.5 ? 0 : draws[4] * 500).catch((error) => world.faults.push(`${visitor.id}: ${error.stack}`))
    else visitor.update()
  }
}
