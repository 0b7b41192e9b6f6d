// What a virtual user does: the parts that the scripts put together.

import { check, sleep } from "k6"
import exec from "k6/execution"
import http from "k6/http"

import { visit } from "./member.js"

/** How many seconds before the end everybody looks and only then leaves. */
const LINGER = 1

/** Joins at its turn within the first half and stays until the end; then everybody must be in its view. */
export function rampedMember({ socket, channel, vus, seconds, run }) {
  const number = exec.scenario.iterationInTest
  sleep((seconds / 2) * (number / vus))
  const name = (n) => `${run}-member-${n}`
  const look = (view) => {
    let missing = 0
    for (let n = 0; n < vus; n++) if (!view.has(name(n))) missing += 1
    check(missing, { "everybody is in the view": (none) => none === 0 })
    if (missing > 0) console.error(`${name(number)}: ${missing} of ${vus} are missing`)
  }
  const gone = (Date.now() - exec.scenario.startTime) / 1000
  visit({ url: socket, channel, run, user: name(number), seconds: seconds - LINGER - gone, linger: LINGER, look })
}

/** Watches others come and go for the whole time. */
export function watcher({ socket, channel, seconds, run }) {
  const user = `${run}-watcher-${exec.scenario.iterationInTest}`
  visit({ url: socket, channel, run, user, seconds, measures: true })
}

/** Comes for a second or so, under a new name each time. */
export function visitor({ socket, channel, run }) {
  const user = `${run}-visitor-${exec.scenario.iterationInTest}`
  visit({ url: socket, channel, run, user, seconds: 0.5 + Math.random() })
}

/** Asks how many are online. */
export function counter({ base, channel }) {
  const response = http.get(`${base}/v1/channels/${encodeURIComponent(channel)}/presence/count`, {
    tags: { name: "count" },
  })
  check(response, {
    "count is 200": (r) => r.status === 200,
    "count is of this channel": (r) => r.status === 200 && r.json("channel") === channel,
    "members are no more than connections": (r) => r.status === 200 && r.json("online") <= r.json("connections"),
  })
}
