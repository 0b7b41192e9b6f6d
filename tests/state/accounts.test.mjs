// Accounts: Supabase's own client signs up, in, on and out, on SQLite and on PostgreSQL, over two nodes.

import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { createClient } from "@supabase/supabase-js"
import { closeAll, connectRaw, WebSocket } from "../phoenix/client.mjs"
import { startRedis } from "../phoenix/redis.mjs"
import { startNode, until } from "../phoenix/server.mjs"
import { startPostgres } from "./postgres.mjs"

const SERVICE_KEY = "a service key for tests"
const service = { Authorization: `Bearer ${SERVICE_KEY}` }
const bearer = (token) => ({ Authorization: `Bearer ${token}` })
const PASSWORD = "correct horse battery"
const SETTINGS = {
  SERVICE_KEY,
  ROLLCALL_SIGNUP: "on",
  ROLLCALL_RATE_SIGN_IN_IP: "0",
  ROLLCALL_RATE_SIGN_IN_ACCOUNT: "0",
}

const folder = mkdtempSync(path.join(tmpdir(), "rollcall-accounts-"))
process.on("exit", () => rmSync(folder, { recursive: true, force: true }))
const sqlite = (name) => `sqlite:${path.join(folder, `${name}.db`)}`

let number = 0
const email = () => `user${++number}@example.com`
/** A client of Supabase's as an app makes it, with a store of its own. */
const client = (node) =>
  createClient(node.url, "any-key", {
    auth: { autoRefreshToken: false, persistSession: false },
    // Its realtime half, not used here, wants a WebSocket, which older Nodes do not bring.
    realtime: { transport: WebSocket },
  })

async function signedUp(node, address = email()) {
  const supabase = client(node)
  const { data, error } = await supabase.auth.signUp({ email: address, password: PASSWORD })
  assert.equal(error, null)
  assert.equal(data.user.email, address)
  return { supabase, address, session: data.session }
}

/** What an unmodified supabase-js does, whatever the database: `node()` made it, `other()` shares both stores. */
function supabaseSuite(node, other) {
  test("signUp, signInWithPassword, getUser, refreshSession, signOut", async () => {
    const { address } = await signedUp(node())
    const supabase = client(node())
    const { data, error } = await supabase.auth.signInWithPassword({ email: address, password: PASSWORD })
    assert.equal(error, null)
    assert.equal(data.user.email, address)
    assert.equal(data.session.token_type, "bearer")
    const { data: me } = await supabase.auth.getUser()
    assert.deepEqual(me.user, { id: data.user.id, email: address, role: "authenticated", tier: null, anonymous: false })

    const first = data.session
    const { data: next, error: refused } = await supabase.auth.refreshSession()
    assert.equal(refused, null)
    assert.notEqual(next.session.access_token, first.access_token)
    assert.notEqual(next.session.refresh_token, first.refresh_token)
    assert.equal(next.user.id, data.user.id)
    const { data: still } = await supabase.auth.getUser()
    assert.equal(still.user.id, data.user.id)

    const { error: out } = await supabase.auth.signOut()
    assert.equal(out, null)
    for (const token of [first.access_token, next.session.access_token]) {
      assert.equal((await node().get("/auth/v1/user", bearer(token))).status, 401)
    }
    const { error: gone } = await client(node()).auth.refreshSession({ refresh_token: next.session.refresh_token })
    assert.equal(gone.code, "refresh_token_not_found")
  })

  test("another node knows the account, its session and its refresh token", async () => {
    const { address, session } = await signedUp(node())
    assert.equal((await other().get("/auth/v1/user", bearer(session.access_token))).json.email, address)
    const { data, error } = await client(other()).auth.refreshSession({ refresh_token: session.refresh_token })
    assert.equal(error, null)
    assert.equal((await node().get("/auth/v1/user", bearer(data.session.access_token))).json.email, address)
    const { error: wrong } = await client(other()).auth.signInWithPassword({ email: address, password: "wrong horse" })
    assert.equal(wrong.code, "invalid_credentials")
    assert.equal((await client(other()).auth.signInWithPassword({ email: address.toUpperCase(), password: PASSWORD })).error, null)
  })

  test("signOut of one device leaves the other, of others leaves this one, and closes their sockets", async () => {
    const { address } = await signedUp(node())
    const devices = []
    for (let i = 0; i < 3; i++) {
      const supabase = client(node())
      const { data } = await supabase.auth.signInWithPassword({ email: address, password: PASSWORD })
      devices.push({ supabase, token: data.session.access_token, refresh: data.session.refresh_token })
    }
    const alive = async ({ token }) => (await other().get("/auth/v1/user", bearer(token))).status === 200
    const sockets = await Promise.all(
      devices.map(({ token }) => connectRaw(other(), { query: { vsn: "2.0.0", token } })),
    )
    assert.equal((await devices[0].supabase.auth.signOut({ scope: "local" })).error, null)
    await until(async () => !(await alive(devices[0])), "the first device is signed out", 1000)
    assert.deepEqual([await alive(devices[1]), await alive(devices[2])], [true, true])
    await until(() => sockets[0].ended, "its socket is closed", 1000)
    assert.equal((await devices[1].supabase.auth.signOut({ scope: "others" })).error, null)
    await until(async () => !(await alive(devices[2])), "the third device is signed out", 1000)
    assert.equal(await alive(devices[1]), true)
    await until(() => sockets[2].ended, "its socket is closed", 1000)
    assert.equal(sockets[1].ended, null)
    const { error } = await client(node()).auth.refreshSession({ refresh_token: devices[2].refresh })
    assert.equal(error.code, "refresh_token_not_found")
    closeAll()
  })

  test("a stolen refresh token ends the sign-in it came from", async () => {
    const { session } = await signedUp(node())
    const exchange = (token, at = node()) =>
      at.post("/auth/v1/token?grant_type=refresh_token", { refresh_token: token })
    const second = (await exchange(session.refresh_token)).json
    // The same moment in another tab, and on another node.
    const third = await exchange(session.refresh_token, other())
    assert.equal(third.status, 200)
    backdate()
    assert.equal((await exchange(session.refresh_token)).status, 400)
    for (const { access_token, refresh_token } of [second, third.json]) {
      await until(async () => (await other().get("/auth/v1/user", bearer(access_token))).status === 401, "it has ended", 1000)
      assert.equal((await exchange(refresh_token)).status, 400)
    }
  })

  test("what is refreshed while the user is signed out everywhere ends with the rest", async () => {
    for (let round = 0; round < 8; round++) {
      const { session } = await signedUp(node())
      const exchange = (at) => at.post("/auth/v1/token?grant_type=refresh_token", { refresh_token: session.refresh_token })
      const under_way = [exchange(node()), exchange(other()), exchange(node()), exchange(other())]
      const ended = await other().request("DELETE", `/v1/users/${session.user.id}/sessions`, { headers: service })
      assert.equal(ended.status, 200)
      const answers = (await Promise.all(under_way)).filter((one) => one.status === 200).map((one) => one.json)
      for (const { access_token, refresh_token } of answers) {
        await until(async () => (await node().get("/auth/v1/user", bearer(access_token))).status === 401, "it has ended", 2000)
        const again = await node().post("/auth/v1/token?grant_type=refresh_token", { refresh_token })
        assert.equal(again.json.error_code, "refresh_token_not_found")
      }
      assert.deepEqual((await node().get(`/v1/users/${session.user.id}/sessions`, service)).json.sessions, [])
    }
  })

  test("a refresh token can be replayed a few times within ten seconds, and no more", async () => {
    const { session } = await signedUp(node())
    const all = Array.from({ length: 20 }, () => node().post("/auth/v1/token?grant_type=refresh_token", { refresh_token: session.refresh_token }))
    assert.equal((await Promise.all(all)).filter((one) => one.status === 200).length, 10)
  })

  let backdate = () => {}
  return { whenBackdated: (how) => (backdate = how) }
}

describe("on SQLite", () => {
  let redis
  const nodes = []
  const url = sqlite("shared")
  before(async () => {
    redis = await startRedis()
    for (let i = 0; i < 2; i++) nodes.push(await startNode({ ...SETTINGS, REDIS_URL: redis.url, DATABASE_URL: url }))
  })
  after(async () => {
    await Promise.all(nodes.map((node) => node.stop()))
    await redis?.stop()
  })
  const suite = supabaseSuite(() => nodes[0], () => nodes[1])
  suite.whenBackdated(() =>
    execFileSync("python3", ["-c", `import sqlite3; c = sqlite3.connect(${JSON.stringify(url.slice(7))}, timeout=10); c.execute("UPDATE rollcall_refresh_tokens SET used_at = used_at - 11"); c.commit()`]),
  )

  test("the owner's own line works as written", async () => {
    const { address } = await signedUp(nodes[0], "test@example.com")
    await nodes[0].post("/auth/v1/signup", { email: "curl@example.com", password: "password" })
    const line = ["-sS", "-X", "POST", `${nodes[0].url}/auth/v1/token`, "-d", '{"email":"curl@example.com","password":"password"}']
    const answer = JSON.parse(execFileSync("curl", line, { encoding: "utf8" }))
    assert.equal(answer.user.email, "curl@example.com")
    assert.deepEqual(Object.keys(answer), ["access_token", "token_type", "expires_in", "refresh_token", "user"])
    assert.equal(address, "test@example.com")
  })

  test("an unknown address and a wrong password get the same answer after the same time", async () => {
    const { address } = await signedUp(nodes[0])
    const attempt = async (as) => {
      const began = performance.now()
      const { status, json } = await nodes[0].post("/auth/v1/token", { email: as, password: "wrong horse" })
      return { status, json, ms: performance.now() - began }
    }
    const times = { known: [], unknown: [] }
    for (let i = 0; i < 20; i++) {
      const [known, unknown] = [await attempt(address), await attempt(email())]
      assert.deepEqual([known.status, known.json], [unknown.status, unknown.json])
      times.known.push(known.ms)
      times.unknown.push(unknown.ms)
    }
    // The least of many: what the machine does besides only adds.
    const [known, unknown] = [Math.min(...times.known), Math.min(...times.unknown)]
    assert.ok(known / unknown > 0.8 && known / unknown < 1.25, `${known} ms and ${unknown} ms`)
    assert.ok(unknown > 3, "no hash was made")
  })

  test("what is stored opens nothing: no password, no token", async () => {
    const { session } = await signedUp(nodes[0])
    const dump = execFileSync("python3", ["-c", `import sqlite3; [print(l) for l in sqlite3.connect(${JSON.stringify(url.slice(7))}).iterdump()]`], { encoding: "utf8" })
    assert.match(dump, /\$argon2id\$v=19\$m=19456,t=2,p=1\$/)
    for (const secret of [PASSWORD, session.refresh_token, session.access_token]) assert.ok(!dump.includes(secret))
    for (const node of nodes) {
      for (const secret of [PASSWORD, session.refresh_token, session.access_token]) assert.ok(!node.log().includes(secret))
    }
  })

  test("bad input gets a clear error and makes nothing", async () => {
    const post = (target, body) => nodes[0].post(target, body)
    const { address } = await signedUp(nodes[0])
    for (const [target, body, status, code] of [
      ["/auth/v1/signup", { email: "no address", password: PASSWORD }, 400, "validation_failed"],
      ["/auth/v1/signup", { email: email() }, 400, "validation_failed"],
      ["/auth/v1/signup", { email: email(), password: "short" }, 422, "weak_password"],
      ["/auth/v1/signup", { email: address, password: PASSWORD }, 422, "user_already_exists"],
      ["/auth/v1/token", { email: address }, 400, "validation_failed"],
      ["/auth/v1/token", { email: address, password: "x".repeat(100_000) }, 400, "invalid_credentials"],
      ["/auth/v1/token?grant_type=refresh_token", {}, 400, "validation_failed"],
      ["/auth/v1/token?grant_type=refresh_token", { refresh_token: "rcr_x" }, 400, "refresh_token_not_found"],
      ["/auth/v1/token?grant_type=magic", {}, 400, "unsupported_grant_type"],
    ]) {
      const answer = await post(target, body)
      assert.deepEqual([answer.status, answer.json.error_code], [status, code], answer.text)
      assert.match(answer.type, /^application\/problem\+json/)
      assert.equal(answer.json.msg, answer.json.detail)
    }
    assert.equal((await post("/auth/v1/token", "{")).status, 400)
  })

  test("a backend lists a user's sessions without their tokens and ends them all, refresh tokens too", async () => {
    const { session, address } = await signedUp(nodes[0])
    const user = session.user.id
    await client(nodes[1]).auth.signInWithPassword({ email: address, password: PASSWORD })
    const listed = await nodes[1].get(`/v1/users/${user}/sessions`, service)
    assert.deepEqual([listed.status, listed.json.user, listed.json.sessions.length], [200, user, 2])
    assert.deepEqual(
      listed.json.sessions.map((one) => [one.email, one.role, one.anonymous]),
      [[address, "authenticated", false], [address, "authenticated", false]],
    )
    assert.ok(!listed.text.includes(session.access_token))
    assert.equal((await nodes[0].get(`/v1/users/${user}/sessions`, bearer(session.access_token))).status, 403)
    assert.equal((await nodes[0].get(`/v1/users/${user}/sessions`)).status, 401)
    const socket = await connectRaw(nodes[0], { query: { vsn: "2.0.0", token: session.access_token } })
    const ended = await nodes[1].request("DELETE", `/v1/users/${user}/sessions`, { headers: service })
    assert.deepEqual([ended.status, ended.json], [200, { user, revoked: 2 }])
    await until(() => socket.ended, "the socket on the other node is closed", 1000)
    assert.equal((await nodes[0].get("/auth/v1/user", bearer(session.access_token))).status, 401)
    const { error } = await client(nodes[0]).auth.refreshSession({ refresh_token: session.refresh_token })
    assert.equal(error.code, "refresh_token_not_found")
    assert.deepEqual((await nodes[0].get(`/v1/users/${user}/sessions`, service)).json.sessions, [])
  })
})

describe("on PostgreSQL", () => {
  let redis
  let postgres
  const nodes = []
  before(async () => {
    ;[redis, postgres] = await Promise.all([startRedis(), startPostgres()])
    const env = { ...SETTINGS, REDIS_URL: redis.url, DATABASE_URL: postgres.url }
    nodes.push(...(await Promise.all([startNode(env), startNode(env)])))
  })
  after(async () => {
    await Promise.all(nodes.map((node) => node.stop()))
    await Promise.all([redis?.stop(), postgres?.stop()])
  })
  const suite = supabaseSuite(() => nodes[0], () => nodes[1])
  suite.whenBackdated(() => postgres.query("UPDATE rollcall_refresh_tokens SET used_at = used_at - 11"))

  test("while it is away sign-in says so, sessions go on, and it comes back by itself", async () => {
    const { session, address } = await signedUp(nodes[0])
    await postgres.stop()
    const refused = await nodes[0].post("/auth/v1/token", { email: address, password: PASSWORD })
    assert.equal(refused.status, 503)
    assert.ok(Number(refused.headers["retry-after"]) > 0)
    assert.equal((await nodes[0].get("/auth/v1/user", bearer(session.access_token))).status, 200)
    const ready = (await nodes[0].get("/readyz")).json
    assert.equal(ready.status, "ready")
    assert.ok(ready.problems.some((one) => one.what === "database_away" && one.users_affected), JSON.stringify(ready))
    await postgres.restart()
    await until(
      async () => (await nodes[0].post("/auth/v1/token", { email: address, password: PASSWORD })).status === 200,
      "sign-in works again",
      10_000,
    )
    const problems = async () => (await nodes[0].get("/readyz")).json.problems.map((one) => one.what)
    await until(async () => !(await problems()).includes("database_away"), "it says so", 5000, problems)
  })
})

describe("limits and switches", () => {
  test("attempts are limited by account and by address, whatever is tried", async () => {
    const node = await startNode({
      SERVICE_KEY,
      DATABASE_URL: sqlite("limits"),
      ROLLCALL_RATE_SIGN_IN_ACCOUNT: "3",
      ROLLCALL_RATE_SIGN_IN_IP: "8",
    })
    const attempt = async (as, password = "wrong horse") => {
      const { status, json, headers } = await node.post("/auth/v1/token", { email: as, password })
      if (status === 429) {
        assert.ok(Number(headers["retry-after"]) > 50)
        assert.equal(json.error_code, "over_request_rate_limit")
      }
      return status
    }
    const made = await node.post("/auth/v1/signup", { email: "ada@example.com", password: PASSWORD }, service)
    assert.equal(made.status, 200, "a trusted backend makes accounts while sign-up is off")
    const one = []
    for (let i = 0; i < 3; i++) one.push(await attempt("Ada@example.com"))
    assert.deepEqual([...one, await attempt("ada@example.com", PASSWORD)], [400, 400, 400, 429])
    const others = []
    for (let i = 0; i < 5; i++) others.push(await attempt(`${i}@example.com`))
    assert.deepEqual(others, [400, 400, 400, 400, 429])
    await node.stop()
  })

  test("sign-up is off unless it is on, and without a database both say what they need", async () => {
    const off = await startNode({ DATABASE_URL: sqlite("off") })
    const refused = await off.post("/auth/v1/signup", { email: email(), password: PASSWORD })
    assert.deepEqual([refused.status, refused.json.error_code], [403, "signup_disabled"])
    assert.equal((await off.post("/auth/v1/signup", {})).json.user.anonymous, true)
    await off.stop()
    const none = await startNode()
    assert.equal((await none.post("/auth/v1/token", { email: email(), password: PASSWORD })).status, 501)
    await none.stop()
  })

  test("an address of a database that cannot work stops the start with one line", async () => {
    for (const [env, said] of [
      [{ DATABASE_URL: "mysql://root:hunter2@db/x" }, /^rollcall: DATABASE_URL: must begin with/],
      [{ DATABASE_URL: "sqlite:/no/such/folder/a.db" }, /rollcall: DATABASE_URL: /],
      [{ ROLLCALL_SIGNUP: "on" }, /^rollcall: ROLLCALL_SIGNUP: needs DATABASE_URL/],
    ]) {
      const error = await startNode(env).then(
        () => assert.fail("it started"),
        (error) => error,
      )
      const line = error.message.split("--- its output ---\n")[1]
      assert.match(line, said)
      assert.ok(!line.includes("hunter2"))
    }
  })
})
