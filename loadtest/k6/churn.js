// Churn: half of VUS watch for DURATION while the other half come, stay a second or so, and leave,
// again and again. How fast others become visible is measured at those who watch.
//
//   k6 run -e BASE_URL=http://127.0.0.1:8000 -e VUS=100 -e DURATION=30s loadtest/k6/churn.js

import { visitor, watcher } from "./lib/roles.js"
import { newRun, settings } from "./lib/settings.js"

const given = settings({ channel: "k6-churn", vus: 100, duration: "30s" })
const half = Math.ceil(given.vus / 2)

export const options = {
  scenarios: {
    watchers: {
      executor: "per-vu-iterations",
      exec: "watch",
      vus: half,
      iterations: 1,
      maxDuration: `${Math.ceil(given.seconds + 30)}s`,
    },
    visitors: {
      executor: "constant-vus",
      exec: "come",
      vus: half,
      // They begin when the watchers are there and end before these do.
      startTime: "1s",
      duration: `${Math.max(1, Math.round(given.seconds - 2))}s`,
      gracefulStop: "10s",
    },
  },
  thresholds: {
    checks: ["rate==1"],
    join_ok: ["rate==1"],
    join_to_state: ["p(95)<250"],
    join_to_visible: ["p(50)<100", "p(99)<500"],
    view_faults: ["count==0"],
    ws_sessions: ["count>0"],
  },
}

export const setup = () => ({ ...given, run: newRun() })

export { visitor as come, watcher as watch }
