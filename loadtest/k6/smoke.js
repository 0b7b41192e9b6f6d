// Join and churn and count at once, small and for about ten seconds: does it all work together?
// Part of the test-suite; its limits are wide, because it may run beside other things.
//
//   k6 run -e BASE_URL=http://127.0.0.1:8000 loadtest/k6/smoke.js

import { sleep } from "k6"

import { counter, rampedMember, visitor, watcher } from "./lib/roles.js"
import { newRun, settings } from "./lib/settings.js"

const given = settings({ channel: "k6-smoke", vus: 10, duration: "8s" })
const whole = { executor: "per-vu-iterations", vus: given.vus, iterations: 1, maxDuration: "60s" }
const middle = { executor: "constant-vus", startTime: "1s", duration: `${Math.max(1, given.seconds - 2)}s` }

export const options = {
  scenarios: {
    join: { ...whole, exec: "join" },
    watch: { ...whole, exec: "watch" },
    come: { ...middle, exec: "come", vus: given.vus, gracefulStop: "10s" },
    count: { ...middle, exec: "count", vus: 1 },
  },
  thresholds: {
    checks: ["rate==1"],
    join_ok: ["rate==1"],
    join_to_state: ["p(95)<2000"],
    join_to_visible: ["p(95)<2000"],
    http_req_failed: ["rate==0"],
    view_faults: ["count==0"],
    ws_sessions: ["count>0"],
  },
}

export const setup = () => ({ ...given, run: newRun() })

const inChannel = (given, name) => ({ ...given, channel: `${given.channel}-${name}` })

export const join = (given) => rampedMember(inChannel(given, "join"))
export const watch = (given) => watcher(inChannel(given, "churn"))
export const come = (given) => visitor(inChannel(given, "churn"))

export function count(given) {
  counter(inChannel(given, "churn"))
  sleep(0.05)
}
