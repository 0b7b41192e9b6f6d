// The HTTP interface, and what is decided before an upgrade: who may connect, from where, how often.

import assert from "node:assert/strict"
import { createHmac, generateKeyPairSync, sign } from "node:crypto"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, afterEach, before, describe, test } from "node:test"
import { closeAll, connectRaw, counted, fresh, joinAs, refused, same, until } from "./client.mjs"
import { startRedis } from "./redis.mjs"
import { request, startNode } from "./server.mjs"

const SERVICE_KEY = "a service key for tests"
const JWT_SECRET = "a secret for tests, long enough to be one"
const service = { Authorization: `Bearer ${SERVICE_KEY}` }
const bearer = (token) => ({ Authorization: `Bearer ${token}` })
const enc = encodeURIComponent

function problem(answer, status) {
  assert.equal(answer.status, status, answer.text)
  assert.match(answer.type, /^application\/problem\+json/, answer.text)
  assert.equal(answer.json.status ?? status, status)
  assert.ok((answer.json.title ?? answer.json.detail ?? "").length > 0, answer.text)
}

/** A signed token; `alg` and `secret` may be wrong on purpose. */
function jwt(claims, { alg = "HS256", secret = JWT_SECRET } = {}) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url")
  const head = `${part({ alg, typ: "JWT" })}.${part(claims)}`
  return `${head}.${alg === "none" ? "" : createHmac("sha256", secret).update(head).digest("base64url")}`
}
const inSeconds = (seconds) => Math.floor(Date.now() / 1000) + seconds

describe("reading presence", () => {
  let node
  before(async () => (node = await startNode()))
  after(() => node?.stop())
  afterEach(closeAll)

  test("an unknown channel counts 0", async () => {
    const { status, json } = await node.get(`/v1/channels/${enc("no:such")}/presence/count`)
    assert.deepEqual([status, json], [200, { channel: "no:such", online: 0, connections: 0 }])
    const { json: roster } = await node.get(`/v1/channels/${enc("no:such")}/presence`)
    assert.deepEqual([roster.online, roster.members, roster.next], [0, [], null])
  })

  test("members come in pages", async () => {
    const room = fresh()
    for (let i = 0; i < 5; i++) await joinAs(node, room, `u${i}`, { meta: { i } })
    await counted(node, room, 5)
    const found = []
    const sizes = []
    let cursor = null
    do {
      const { status, json } = await node.get(`/v1/channels/${enc(room)}/presence?limit=2${cursor ? `&cursor=${enc(cursor)}` : ""}`)
      assert.equal(status, 200)
      assert.equal(json.online, 5)
      sizes.push(json.members.length)
      found.push(...json.members.map((one) => one.user))
      cursor = json.next
    } while (cursor !== null && sizes.length < 10)
    assert.deepEqual(sizes, [2, 2, 1])
    assert.deepEqual(found.sort(), ["u0", "u1", "u2", "u3", "u4"])
    for (const limit of [1, 1000]) assert.equal((await node.get(`/v1/channels/${enc(room)}/presence?limit=${limit}`)).status, 200)
    for (const limit of ["0", "1001", "-1", "many", ""]) problem(await node.get(`/v1/channels/${enc(room)}/presence?limit=${limit}`), 400)
    const odd = await node.get(`/v1/channels/${enc(room)}/presence?cursor=${enc("not a cursor \u0000")}`)
    assert.ok(odd.status < 500, odd.text)
  })

  test("many channels are counted at once", async () => {
    const room = fresh()
    await joinAs(node, room, "ada")
    await joinAs(node, room, "ada")
    await counted(node, room, 1, 2)
    const { status, json } = await node.post("/v1/presence/counts", { channels: [room, "no:such", room] })
    assert.equal(status, 200)
    assert.deepEqual(json.counts[0], { channel: room, online: 1, connections: 2 })
    assert.deepEqual(json.counts[1], { channel: "no:such", online: 0, connections: 0 })
    const names = Array.from({ length: 1000 }, (_, i) => `c${i}`)
    assert.equal((await node.post("/v1/presence/counts", { channels: names })).json.counts.length, 1000)
    assert.deepEqual((await node.post("/v1/presence/counts", { channels: [] })).json, { counts: [] })
    problem(await node.post("/v1/presence/counts", { channels: [...names, "one too many"] }), 400)
    for (const body of ["{", "[]", "{}", '{"channels":"a"}', '{"channels":[1]}', ""]) problem(await node.post("/v1/presence/counts", body), 400)
  })

  test("occupied channels are listed by prefix, in pages", async () => {
    const prefix = fresh("list")
    const names = ["a", "b", "c"].map((end) => `${prefix}/${end}`)
    for (const name of names) await joinAs(node, name, "ada")
    const list = async (query) => (await node.get(`/v1/channels?prefix=${enc(prefix)}${query}`)).json
    await until(async () => (await list("")).channels.length === 3, "three channels", 5000, () => list(""))
    const all = await list("")
    assert.deepEqual(all.channels.map((one) => one.channel).sort(), names)
    assert.deepEqual(Object.keys(all.channels[0]).sort(), ["channel", "connections", "online"])
    assert.equal(all.next, null)
    const first = await list("&limit=2")
    assert.equal(first.channels.length, 2)
    const second = await list(`&limit=2&cursor=${enc(first.next)}`)
    assert.deepEqual([...first.channels, ...second.channels].map((one) => one.channel).sort(), names)
    assert.equal(second.next, null)
    assert.deepEqual((await node.get("/v1/channels?prefix=no-such")).json, { channels: [], next: null })
    problem(await node.get("/v1/channels?limit=0"), 400)
    problem(await node.get("/v1/channels?limit=1001"), 400)
  })

  test("a user's presence, and when it was last seen", async () => {
    const [room, user] = [fresh(), fresh("user")]
    const of = async () => (await node.get(`/v1/users/${enc(user)}/presence`)).json
    assert.deepEqual(await of(), { user, online: false, connections: 0, channels: [], last_seen: null })
    const me = await joinAs(node, room, user)
    await until(async () => (await of()).online, "online", 5000, of)
    const { connections, channels } = await of()
    assert.deepEqual([connections, channels], [1, [room]])
    const began = Date.now()
    me.channel.leave()
    const gone = await until(async () => {
      const now = await of()
      return !now.online && now.last_seen && now
    }, "last seen", 5000, of)
    assert.deepEqual([gone.connections, gone.channels], [0, []])
    assert.ok(Math.abs(Date.parse(gone.last_seen) - began) < 5000, gone.last_seen)
  })

  test("percent-encoded names mean what they say", async () => {
    const names = [`a/b ${fresh()}`, `100%25 ${fresh()}`, `名前 ${fresh()}`, `?#& ${fresh()}`, `a%2Fb ${fresh()}`]
    for (const name of names) {
      await joinAs(node, name, "a/b:ü%")
      await counted(node, name, 1)
      const { json } = await node.get(`/v1/channels/${enc(name)}/presence/count`)
      assert.equal(json.channel, name)
    }
    await until(async () => {
      const { json } = await node.get(`/v1/users/${enc("a/b:ü%")}/presence`)
      return json.user === "a/b:ü%" && same(json.channels.sort(), [...names].sort())
    }, "all channels of the user")
    for (const bad of ["%ff", "%", "%zz", "%00"]) {
      const answer = await node.get(`/v1/channels/${bad}/presence/count`)
      assert.ok(answer.status < 500, `${bad}: ${answer.status}`)
    }
    problem(await node.get(`/v1/channels/${"x".repeat(201)}/presence/count`), 400)
  })

  test("a snapshot, then diffs, as server-sent events", async () => {
    const room = fresh()
    await joinAs(node, room, "ada")
    const heard = []
    const stop = new AbortController()
    const stream = await fetch(`${node.url}/v1/channels/${enc(room)}/presence/events`, { signal: stop.signal })
    assert.equal(stream.status, 200)
    assert.match(stream.headers.get("content-type"), /^text\/event-stream/)
    const reading = (async () => {
      let text = ""
      for await (const chunk of stream.body) {
        text += Buffer.from(chunk).toString()
        for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
          const fields = Object.fromEntries(text.slice(0, end).split("\n").filter((line) => /^\w/.test(line)).map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]))
          text = text.slice(end + 2)
          if (fields.event) heard.push(fields)
        }
      }
    })().catch(() => {})
    try {
      await until(() => heard[0]?.event === "snapshot", "the snapshot", 5000, () => heard)
      assert.ok(heard[0].data.includes("ada") && heard[0].id.length > 0)
      await joinAs(node, room, "bo")
      await until(() => heard.some((one) => one.event === "diff" && one.data.includes('"bo"') && one.id !== heard[0].id), "the diff", 5000, () => heard)
    } finally {
      stop.abort()
      await reading
    }
    await counted(node, room, 2)
  })
})

describe("the rest of the surface", () => {
  let node
  before(async () => (node = await startNode({ ROLLCALL_ALLOWED_ORIGINS: "https://app.example, https://other.example" })))
  after(() => node?.stop())
  afterEach(closeAll)

  test("healthz, readyz, metrics, openapi", async () => {
    assert.equal((await node.get("/healthz")).status, 200)
    const ready = await node.get("/readyz")
    assert.deepEqual([ready.status, ready.json.status, ready.json.redis], [200, "ready", "off"])
    await joinAs(node, fresh(), "ada")
    const metrics = await node.get("/metrics")
    assert.equal(metrics.status, 200)
    assert.match(metrics.text, /^# TYPE rollcall_\w+ /m)
    assert.match(metrics.text, /^rollcall_\w*connections\w*(\{[^}]*\})? [1-9]/m)
    const { status, json } = await node.get("/openapi.json")
    assert.equal(status, 200)
    assert.match(json.openapi, /^3\.1/)
    for (const path of ["/v1/channels/{channel}/presence/count", "/v1/presence/counts", "/v1/sessions"]) assert.ok(json.paths[path], path)
  })

  test("unknown paths are 404, wrong methods 405, both as problems", async () => {
    problem(await node.get("/no/such/path"), 404)
    problem(await node.get("/v1/nothing"), 404)
    problem(await node.request("DELETE", "/v1/channels/a/presence/count"), 405)
    problem(await node.get("/v1/presence/counts"), 405)
    problem(await node.request("PUT", "/v1/sessions", { body: {} }), 405)
  })

  test("preflight: allowed origins may call with a token, others are not told they may", async () => {
    const ask = (Origin, method = "POST") =>
      node.request("OPTIONS", "/v1/presence/counts", {
        headers: { Origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization,content-type" },
      })
    const yes = await ask("https://app.example")
    assert.ok([200, 204].includes(yes.status), String(yes.status))
    assert.ok(["*", "https://app.example"].includes(yes.headers["access-control-allow-origin"]))
    assert.match(yes.headers["access-control-allow-methods"], /POST|\*/)
    const allowed = yes.headers["access-control-allow-headers"].toLowerCase()
    for (const header of ["authorization", "content-type"]) assert.ok(allowed.includes(header) || allowed === "*", allowed)
    const no = await ask("https://evil.example")
    assert.ok(!["*", "https://evil.example"].includes(no.headers["access-control-allow-origin"]))
    const read = await node.get("/v1/channels/a/presence/count", { Origin: "https://other.example" })
    assert.equal(read.headers["access-control-allow-origin"], "https://other.example")
  })

  test("foreign origins may not connect", async () => {
    for (const Origin of ["https://evil.example", "http://app.example", "https://app.example.evil.example", "null"]) {
      assert.equal((await refused(node, { headers: { Origin } })).status, 403, Origin)
    }
    for (const headers of [{ Origin: "https://app.example" }, { Origin: "https://other.example" }, {}]) {
      await (await connectRaw(node, { headers })).heartbeat()
    }
  })
})

describe("sessions and tokens", () => {
  let redis, a, b
  const env = () => ({
    REDIS_URL: redis.url,
    ROLLCALL_AUTH: "session",
    SERVICE_KEY,
    JWT_SECRET,
    ROLLCALL_ANONYMOUS: "on",
    ROLLCALL_ALLOWED_ORIGINS: "https://app.example",
  })
  before(async () => {
    redis = await startRedis()
    ;[a, b] = await Promise.all([startNode(env()), startNode(env())])
  })
  after(async () => {
    await Promise.all([a?.stop(), b?.stop()])
    await redis?.stop()
  })
  afterEach(closeAll)

  const create = async (body = { user_id: "ada" }) => {
    const answer = await a.post("/v1/sessions", body, service)
    assert.equal(answer.status, 201, answer.text)
    return answer.json
  }

  test("creating a session needs the service key", async () => {
    const made = await create({ user_id: "ada", email: "ada@example.org", role: "editor", tier: "pro", ttl_seconds: 120 })
    assert.equal(made.token_type, "bearer")
    assert.ok(made.expires_in > 0 && made.expires_in <= 120)
    assert.deepEqual(made.user, { id: "ada", email: "ada@example.org", role: "editor", tier: "pro", anonymous: false })
    const ttl = await redis.call("TTL", `session:${made.access_token}`)
    assert.ok(ttl > 0 && ttl <= 120, String(ttl))
    problem(await a.post("/v1/sessions", { user_id: "ada" }), 401)
    problem(await a.post("/v1/sessions", { user_id: "ada" }, bearer("wrong")), 401)
    problem(await a.post("/v1/sessions", { user_id: "ada" }, bearer(made.access_token)), 403)
    for (const body of [{}, { user_id: "" }, { user_id: "__proto__" }, { user_id: "x".repeat(129) }, "{"]) problem(await a.post("/v1/sessions", body, service), 400)
  })

  test("an anonymous session where it is allowed", async () => {
    const made = await a.post("/auth/v1/signup", {})
    assert.equal(made.status, 200, made.text)
    assert.equal(made.json.user.anonymous, true)
    assert.ok(made.json.user.id.length > 0)
    const other = await a.post("/auth/v1/signup", {})
    assert.notEqual(other.json.user.id, made.json.user.id)
    await (await connectRaw(b, { query: { vsn: "2.0.0", token: made.json.access_token } })).heartbeat()
    const me = await b.get("/auth/v1/user", bearer(made.json.access_token))
    assert.equal(me.status, 200, me.text)

    const strict = await startNode({ ...env(), ROLLCALL_ANONYMOUS: "off" })
    try {
      const answer = await strict.post("/auth/v1/signup", {})
      assert.ok(answer.status >= 400 && answer.status < 500, answer.text)
    } finally {
      await strict.stop()
    }
  })

  test("tokens signed with an issuer's private key are believed, and those of nobody else", async () => {
    const kinds = { ES256: ["ec", { namedCurve: "P-256" }], RS256: ["rsa", { modulusLength: 2048 }], EdDSA: ["ed25519", {}] }
    const pair = (alg) => ({ alg, ...generateKeyPairSync(...kinds[alg]) })
    const known = Object.keys(kinds).map(pair)
    const shown = known.map(({ alg, publicKey }) => ({ ...publicKey.export({ format: "jwk" }), kid: `key ${alg}`, use: "sig", alg }))
    const token = ({ alg, privateKey }, header = {}) => {
      const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url")
      const head = `${part({ alg, kid: `key ${alg}`, ...header })}.${part({ sub: `u-${alg}`, exp: inSeconds(60) })}`
      const signed = sign(alg === "EdDSA" ? null : "sha256", Buffer.from(head), { key: privateKey, dsaEncoding: "ieee-p1363" })
      return `${head}.${signed.toString("base64url")}`
    }
    const folder = mkdtempSync(path.join(tmpdir(), "rollcall-keys-"))
    const file = path.join(folder, "jwks.json")
    writeFileSync(file, JSON.stringify({ keys: [...shown, { kty: "oct", k: "c2VjcmV0" }] }))
    const node = await startNode({ ...env(), ROLLCALL_JWKS_FILE: file })
    try {
      const who = (token) => node.get("/auth/v1/user", bearer(token))
      for (const key of known) {
        for (const header of [{}, { kid: undefined }]) assert.equal((await who(token(key, header))).json.id, `u-${key.alg}`)
        const raw = await connectRaw(node, { query: { vsn: "2.0.0", token: token(key) } })
        await raw.heartbeat()
        problem(await who(token(key, { kid: "key of somebody" })), 401)
        problem(await who(token(pair(key.alg))), 401)
        problem(await who(token(key).slice(0, -8) + "AAAAAAAA"), 401)
        // The public key is no secret: whoever signs with it as if it were one is nobody.
        for (const secret of [key.publicKey.export({ format: "pem", type: "spki" }), JSON.stringify(shown), "secret"]) {
          problem(await who(jwt({ sub: "root" }, { secret })), 401)
        }
      }
      assert.equal((await who(jwt({ sub: "ada" }))).json.id, "ada", "the shared secret goes on")
    } finally {
      await node.stop()
      rmSync(folder, { recursive: true })
    }
  })

  test("a token is accepted wherever clients put it, on every node", async () => {
    const { access_token: token } = await create()
    const wrapped = Buffer.from(token).toString("base64").replace(/=/g, "")
    const Origin = "https://app.example"
    const places = [
      ...["token", "apikey", "access_token"].map((name) => ({ query: { vsn: "2.0.0", [name]: token } })),
      { headers: bearer(token) },
      { protocols: ["phoenix", `base64url.bearer.phx.${wrapped}`] },
      { headers: { Origin, Cookie: `theme=dark; rollcall_session=${token}` } },
    ]
    for (const node of [a, b]) {
      for (const place of places) {
        const room = fresh()
        const raw = await connectRaw(node, place)
        assert.equal((await raw.join(room, { user_id: "somebody else" })).status, "ok", JSON.stringify(place))
        const state = await until(() => {
          const frames = raw.got(room)
          return frames.some((frame) => frame.payload?.ada || frame.payload?.joins?.ada) && frames
        }, "the user is the session's", 5000, () => raw.frames)
        assert.ok(!JSON.stringify(state).includes("somebody else"))
      }
    }
  })

  test("no token, a wrong one or a cookie from elsewhere: 401 or 403 before the upgrade", async () => {
    const { access_token: token } = await create()
    assert.equal((await refused(a)).status, 401)
    assert.equal((await refused(a, { query: { vsn: "2.0.0", token: "wrong" } })).status, 401)
    assert.equal((await refused(a, { headers: bearer(`${token}x`) })).status, 401)
    assert.equal((await refused(a, { headers: { Cookie: `rollcall_session=${token}` } })).status, 401, "a cookie needs an origin")
    assert.equal((await refused(a, { headers: { Origin: "https://evil.example", Cookie: `rollcall_session=${token}` } })).status, 403)
  })

  test("reads need a session or the service key; health does not", async () => {
    const { access_token: token } = await create()
    const path = "/v1/channels/a/presence/count"
    problem(await a.get(path), 401)
    problem(await a.get(path, bearer("wrong")), 401)
    assert.equal((await a.get(path, bearer(token))).status, 200)
    assert.equal((await a.get(path, service)).status, 200)
    assert.equal((await a.get("/healthz")).status, 200)
    assert.equal((await a.get("/readyz")).status, 200)
  })

  test("revoking closes the session's sockets within a second, on the other node too", async () => {
    const { access_token: token } = await create()
    const { access_token: other } = await create({ user_id: "bo" })
    const room = fresh()
    const watcher = await joinAs(b, room, undefined, { params: { token: other } })
    const sockets = [await connectRaw(a, { headers: bearer(token) }), await connectRaw(b, { headers: bearer(token) })]
    for (const socket of sockets) assert.equal((await socket.join(room, {})).status, "ok")
    await until(() => watcher.refs("ada").length === 2, "ada is there twice")

    problem(await a.request("DELETE", `/v1/sessions/${enc(token)}`), 401)
    problem(await a.request("DELETE", `/v1/sessions/${enc(token)}`, { headers: bearer(other) }), 403)
    const revoked = await a.request("DELETE", `/v1/sessions/${enc(token)}`, { headers: service })
    assert.ok([200, 204].includes(revoked.status), revoked.text)
    for (const socket of sockets) assert.notEqual((await socket.end(1000)).code, 1000)
    for (const node of [a, b]) {
      assert.equal((await refused(node, { headers: bearer(token) })).status, 401)
      problem(await node.get("/v1/channels/a/presence/count", bearer(token)), 401)
    }
    await until(() => watcher.sees("bo"), "ada is gone", 4000, watcher.users)
    assert.deepEqual(watcher.closes, [])

    const own = await a.request("DELETE", `/v1/sessions/${enc(other)}`, { headers: bearer(other) })
    assert.ok([200, 204].includes(own.status), `the session itself may: ${own.text}`)
    await until(() => watcher.closes.length > 0, "its socket is closed", 1000)
  })

  test("logging out ends the session", async () => {
    const { access_token: token } = await create()
    const socket = await connectRaw(b, { headers: bearer(token) })
    const answer = await a.post("/auth/v1/logout", {}, bearer(token))
    assert.ok([200, 204].includes(answer.status), answer.text)
    await socket.end(1500)
    assert.equal((await refused(a, { headers: bearer(token) })).status, 401)
  })

  test("password sign-in without accounts is a clear error", async () => {
    const answer = await a.post("/auth/v1/token", { email: "ada@example.org", password: "secret" })
    assert.ok(answer.status >= 400, String(answer.status))
    assert.match(answer.type, /^application\/problem\+json/)
    assert.ok(!answer.text.includes("secret"))
  })

  test("JWTs: a good one connects, all others do not", async () => {
    const good = jwt({ sub: "jo", exp: inSeconds(60) })
    const room = fresh()
    const raw = await connectRaw(a, { query: { vsn: "2.0.0", token: good } })
    assert.equal((await raw.join(room, { user_id: "somebody else" })).status, "ok")
    await until(async () => {
      const { json } = await a.get(`/v1/channels/${enc(room)}/presence`, bearer(good))
      return same(json.members.map((one) => one.user), ["jo"])
    }, "the token's subject is the user")
    const bad = {
      expired: jwt({ sub: "jo", exp: inSeconds(-120) }),
      "without exp or sub": jwt({ role: "authenticated" }),
      "without sub": jwt({ exp: inSeconds(60) }),
      "with a refused sub": jwt({ sub: "__proto__", exp: inSeconds(60) }),
      "signed with another secret": jwt({ sub: "jo", exp: inSeconds(60) }, { secret: "another" }),
      "not signed": jwt({ sub: "jo", exp: inSeconds(60) }, { alg: "none" }),
      "of another kind": jwt({ sub: "jo", exp: inSeconds(60) }, { alg: "RS256" }),
      "not yet valid": jwt({ sub: "jo", nbf: inSeconds(600), exp: inSeconds(900) }),
      changed: good.replace(/\.[^.]+\./, `.${Buffer.from(JSON.stringify({ sub: "root", exp: inSeconds(60) })).toString("base64url")}.`),
    }
    for (const [what, token] of Object.entries(bad)) {
      assert.equal((await refused(a, { query: { vsn: "2.0.0", token } })).status, 401, what)
      problem(await a.get("/v1/channels/a/presence/count", bearer(token)), 401)
    }
  })

  test("a JWT's socket is closed when it expires", async () => {
    const token = jwt({ sub: "jo", exp: inSeconds(3) })
    const raw = await connectRaw(a, { headers: bearer(token) })
    const { code } = await raw.end(8000)
    assert.notEqual(code, 1000)
  })
})

describe("rates", () => {
  afterEach(closeAll)

  test("over ROLLCALL_RATE_IP calls and connections get 429 with Retry-After; health does not", async () => {
    const node = await startNode({ ROLLCALL_RATE_IP: "5" })
    try {
      const path = "/v1/channels/a/presence/count"
      const answers = []
      for (let i = 0; i < 8; i++) answers.push(await node.get(path))
      assert.deepEqual(answers.map((answer) => answer.status), [200, 200, 200, 200, 200, 429, 429, 429])
      const over = answers.at(-1)
      problem(over, 429)
      const after = Number(over.headers["retry-after"])
      assert.ok(after >= 1 && after <= 60, over.headers["retry-after"])
      const upgrade = await refused(node)
      assert.equal(upgrade.status, 429)
      assert.ok(Number(upgrade.headers["retry-after"]) >= 1)
      for (let i = 0; i < 10; i++) assert.equal((await node.get("/healthz")).status, 200)
      assert.equal((await node.get("/readyz")).status, 200)
      // An address of one's own choosing is not believed.
      assert.equal((await node.get(path, { "X-Forwarded-For": "203.0.113.9" })).status, 429)
    } finally {
      await node.stop()
    }
  })

  test("connections count as well", async () => {
    const node = await startNode({ ROLLCALL_RATE_IP: "3" })
    try {
      for (let i = 0; i < 3; i++) await connectRaw(node)
      assert.equal((await refused(node)).status, 429)
    } finally {
      await node.stop()
    }
  })

  test("behind a trusted proxy the rightmost untrusted address counts", async () => {
    const node = await startNode({ ROLLCALL_RATE_IP: "2", ROLLCALL_TRUSTED_PROXIES: "127.0.0.0/8, 10.0.0.0/8" })
    try {
      const from = async (address) => (await node.get("/v1/channels/a/presence/count", { "X-Forwarded-For": address })).status
      const times = async (...addresses) => {
        const statuses = []
        for (const address of addresses) statuses.push(await from(address))
        return statuses
      }
      assert.deepEqual(await times("203.0.113.1", "203.0.113.1", "203.0.113.1"), [200, 200, 429])
      assert.deepEqual(await times("203.0.113.2", "1.1.1.1, 203.0.113.2", "9.9.9.9, 203.0.113.2, 10.1.2.3"), [200, 200, 429], "what the client itself wrote does not count")
      assert.deepEqual(await times("2001:db8:1:2::1", "2001:db8:1:2::2", "2001:db8:1:2:ffff::"), [200, 200, 429], "IPv6 by /64")
      assert.deepEqual(await times("2001:db8:1:3::1"), [200])
      assert.ok((await times("not an address"))[0] < 500)
    } finally {
      await node.stop()
    }
  })

  test("a node with all the connections it may have says so, and has room again when one goes", async () => {
    const node = await startNode({ ROLLCALL_MAX_CONNECTIONS: "2" })
    try {
      const [first] = [await connectRaw(node), await connectRaw(node)]
      const full = await refused(node)
      assert.deepEqual([full.status, full.headers["retry-after"]], [503, "5"])
      assert.equal((await node.get("/readyz")).status, 200, "HTTP goes on")
      first.close()
      await until(async () => {
        try {
          return await connectRaw(node)
        } catch {
          return false
        }
      }, "room for another")
    } finally {
      await closeAll()
      await node.stop()
    }
  })

  test("over ROLLCALL_RATE_USER a user gets 429, whatever the address; others do not", async () => {
    const node = await startNode({ ROLLCALL_RATE_USER: "3", ROLLCALL_AUTH: "session", JWT_SECRET })
    try {
      const path = "/v1/channels/a/presence/count"
      const [ada, bo] = ["ada", "bo"].map((sub) => bearer(jwt({ sub, exp: inSeconds(60) })))
      const statuses = []
      for (let i = 0; i < 4; i++) statuses.push((await node.get(path, ada)).status)
      assert.deepEqual(statuses, [200, 200, 200, 429])
      assert.equal((await refused(node, { headers: ada })).status, 429)
      assert.equal((await node.get(path, bo)).status, 200)
    } finally {
      await node.stop()
    }
  })

  test("two nodes on one Redis count together", async () => {
    const redis = await startRedis()
    const nodes = await Promise.all([0, 1].map(() => startNode({ REDIS_URL: redis.url, ROLLCALL_RATE_IP: "4" })))
    try {
      const statuses = []
      for (let i = 0; i < 6; i++) statuses.push((await request(nodes[i % 2].port, "GET", "/v1/channels/a/presence/count")).status)
      assert.deepEqual(statuses, [200, 200, 200, 200, 429, 429])
      const keys = await redis.keys("ratelimit:ip:*")
      assert.equal(keys.length, 1, keys.join())
      const ttl = await redis.call("TTL", keys[0])
      assert.ok(ttl > 0 && ttl <= 60, String(ttl))
    } finally {
      await Promise.all(nodes.map((node) => node.stop()))
      await redis.stop()
    }
  })
})

describe("starting", () => {
  test("a setting that cannot work stops the start with one line that names it", async () => {
    const wrong = [
      ["ROLLCALL_LISTEN", "0.0.0.0:0"],
      ["ROLLCALL_GRACE_SECONDS", "-1"],
      ["ROLLCALL_AUTH", "maybe"],
      ["REDIS_URL", "http://127.0.0.1"],
      ["ROLLCALL_TRUSTED_PROXIES", "everybody"],
    ]
    for (const [name, value] of wrong) {
      const error = await startNode({ [name]: value }).then(
        (node) => node.stop().then(() => null),
        (error) => error,
      )
      assert.ok(error, `${name}=${value} is accepted`)
      const named = name === "ROLLCALL_LISTEN" ? /ROLLCALL_AUTH/ : new RegExp(`${name}|${name.toLowerCase().replace("rollcall_", "--").replaceAll("_", "-")}`)
      assert.match(error.message, named)
    }
  })
})
