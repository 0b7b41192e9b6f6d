// The online count over HTTP: VUS ask for it one after the other for DURATION.
//
//   k6 run -e BASE_URL=http://127.0.0.1:8000 -e CHANNEL=lobby -e VUS=16 -e DURATION=30s loadtest/k6/count.js

import { counter } from "./lib/roles.js"
import { settings } from "./lib/settings.js"

const given = settings({ channel: "lobby", vus: 16, duration: "30s" })

export const options = {
  scenarios: { count: { executor: "constant-vus", vus: given.vus, duration: `${given.seconds}s` } },
  thresholds: {
    checks: ["rate==1"],
    http_req_failed: ["rate==0"],
    http_req_duration: ["p(95)<50", "p(99)<100"],
  },
}

export const setup = () => given

export default counter
