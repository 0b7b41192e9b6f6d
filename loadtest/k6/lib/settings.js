// What all scripts read from the environment.

const env = (name, fallback) => (__ENV[name] === undefined || __ENV[name] === "" ? fallback : __ENV[name])

/** `2m`, `90s`, `1m30s` or a number of seconds, in seconds. */
function seconds(text) {
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text)
  const parts = /^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?$/.exec(text)
  if (!parts || text === "") throw new Error(`DURATION: ${text} is not like 30s or 1m30s`)
  const [, hours = 0, minutes = 0, rest = 0] = parts
  return Number(hours) * 3600 + Number(minutes) * 60 + Number(rest)
}

function positive(name, text) {
  const value = Number(text)
  if (!Number.isInteger(value) || value < 1) throw new Error(`${name}: ${text} is not a whole number from 1 up`)
  return value
}

export function settings({ channel, vus, duration }) {
  const base = env("BASE_URL", env("ROLLCALL_URL", "http://127.0.0.1:8000")).replace(/\/+$/, "")
  return {
    base,
    socket: `${base.replace(/^http/, "ws")}/socket/websocket?vsn=2.0.0`,
    channel: env("CHANNEL", channel),
    vus: positive("VUS", env("VUS", vus)),
    seconds: seconds(String(env("DURATION", duration))),
  }
}

/** Names that no earlier run has used. Call it in `setup`, so that all VUs share it. */
export const newRun = () => Date.now().toString(36)
