// Connect-and-join ramp: VUS members join within the first half of DURATION and stay until its end,
// when each must have all of them in its view.
//
//   k6 run -e BASE_URL=http://127.0.0.1:8000 -e VUS=200 -e DURATION=30s loadtest/k6/join.js

import { rampedMember } from "./lib/roles.js"
import { newRun, settings } from "./lib/settings.js"

const given = settings({ channel: "k6-join", vus: 200, duration: "30s" })

export const options = {
  scenarios: {
    join: {
      executor: "per-vu-iterations",
      vus: given.vus,
      iterations: 1,
      maxDuration: `${Math.ceil(given.seconds + 30)}s`,
    },
  },
  thresholds: {
    checks: ["rate==1"],
    join_ok: ["rate==1"],
    join_to_state: ["p(95)<250"],
    view_faults: ["count==0"],
    ws_sessions: ["count>0"],
  },
}

export const setup = () => ({ ...given, run: newRun() })

export default rampedMember
