// The conformance list for Pusher's clients: with the real pusher-js and server library, and with single frames.

import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import http from "node:http"
import { after, afterEach, before, describe, test } from "node:test"
import { startRedis } from "../phoenix/redis.mjs"
import { freePort, holds, startNode, until } from "../phoenix/server.mjs"
import { APP, APPS, backend, endAll, fresh, join, pusherClient, same } from "./people.mjs"
import { closeRaw, hmac, open, openPusher } from "./raw.mjs"

const settings = { ...APPS, ROLLCALL_GRACE_SECONDS: "1" }
const json = (message) => JSON.parse(message.data)
const user = (id, info) => JSON.stringify({ user_id: id, ...(info && { user_info: info }) })

describe("Pusher conformance", () => {
  let node, redis, a, b, hooks
  const calls = []
  let refusals = 0

  before(async () => {
    redis = await startRedis()
    hooks = http.createServer((request, answer) => {
      let body = ""
      request.on("data", (part) => (body += part))
      request.on("end", () => {
        answer.statusCode = refusals-- > 0 ? 500 : 200
        if (answer.statusCode === 200) calls.push({ headers: request.headers, rawBody: body })
        answer.end()
      })
    })
    const port = await freePort()
    await new Promise((resolve) => hooks.listen(port, "127.0.0.1", resolve))
    const shared = { ...settings, REDIS_URL: redis.url, ROLLCALL_PUSHER_WEBHOOKS: `http://127.0.0.1:${port}/hooks?x=1`, ROLLCALL_PUSHER_SUBSCRIPTION_COUNT: "on" }
    ;[node, a, b] = await Promise.all([startNode({ ...settings, ROLLCALL_PUSHER_ACTIVITY_SECONDS: "77" }), startNode(shared), startNode(shared)])
  })
  afterEach(async () => {
    closeRaw()
    await endAll()
  })
  after(async () => {
    await Promise.all([node?.stop(), a?.stop(), b?.stop()])
    await redis?.stop()
    hooks?.close()
  })

  test("1. Handshake frame parses; activity_timeout honoured; custom wsPath", async () => {
    const raw = await openPusher(node)
    assert.match(raw.id, /^\d+\.\d+$/)
    assert.equal(raw.hello.activity_timeout, 77)
    const client = pusherClient(node, "ada", { wsPath: "/behind/a/proxy" })
    await until(() => client.connection.state === "connected", "connected by another path")
    assert.match(client.connection.socket_id, /^\d+\.\d+$/)
    raw.say({ event: "pusher:ping", data: {} })
    await raw.find(({ event }) => event === "pusher:pong", "a pong")
    for (const protocol of [5, 6]) await openPusher(node, APP.key, `protocol=${protocol}`)
  })

  for (const name of ["one node", "two nodes"]) {
    const nodes = () => (name === "one node" ? [node, node] : [a, b])

    test(`2. Second tab of the same user: no member_added; first tab closing: no member_removed; last tab: exactly one (${name})`, async () => {
      const [x, y] = nodes()
      const channel = `presence-${fresh()}`
      const watcher = await openPusher(x)
      await watcher.join(channel, user("watcher"))
      const [one, two] = [await openPusher(x), await openPusher(y)]
      await one.join(channel, user("ada", { n: 1 }))
      await two.join(channel, user("ada", { n: 2 }))
      const added = () => watcher.events(channel, "pusher_internal:member_added").map(json)
      const removed = () => watcher.events(channel, "pusher_internal:member_removed").map(json)
      await until(() => added().length > 0, "one came")
      one.socket.terminate()
      await holds(() => added().length === 1 && removed().length === 0, "nothing more is told", 2000)
      assert.deepEqual(added(), [{ user_id: "ada", user_info: { n: 1 } }])
      two.say({ event: "pusher:unsubscribe", data: { channel } })
      await until(() => removed().length > 0, "the last is gone")
      assert.deepEqual(removed(), [{ user_id: "ada" }])
    })

    test(`3. Same user racing last-leave and first-join: added/removed order matches final state (${name})`, async () => {
      const [x, y] = nodes()
      const channel = `presence-${fresh()}`
      const watcher = await openPusher(x)
      await watcher.join(channel, user("watcher"))
      const [one, two] = [await openPusher(x), await openPusher(y)]
      for (let round = 0; round < 20; round++) {
        one.subscribe(channel, user("ada"))
        two.say({ event: "pusher:unsubscribe", data: { channel } })
        await new Promise((resolve) => setTimeout(resolve, round % 5))
        two.subscribe(channel, user("ada"))
        one.say({ event: "pusher:unsubscribe", data: { channel } })
      }
      const moves = () => watcher.told.filter((message) => message.channel === channel && /member_/.test(message.event)).map((message) => message.event.split("_").pop())
      await until(async () => (await x.get(`/v1/channels/${channel.slice(9)}/presence/count`)).json?.online === 2, "ada is in")
      await holds(() => moves().at(-1) === "added", "and that is what was told last", 1500)
      moves().forEach((move, n) => assert.equal(move, n % 2 ? "removed" : "added", "they alternate"))
    })
  }

  test("4. Subscriber's own member_added not delivered to itself, but to its peers; snapshot contains self, me set", async () => {
    const room = fresh()
    const raw = await openPusher(node)
    const { presence } = json(await raw.join(`presence-${room}`, user("raw", { a: 1 })))
    assert.deepEqual(presence, { count: 1, ids: ["raw"], hash: { raw: { a: 1 } } })
    const ada = await join("pusher", node, room, "ada", { name: "Ada" })
    assert.deepEqual(ada.channel.members.me, { id: "ada", info: { name: "Ada" } })
    assert.equal(ada.channel.members.count, 2)
    await raw.find(({ event }) => event === "pusher_internal:member_added", "the peer is told")
    await holds(() => raw.told.every((message) => !/member_added/.test(message.event) || json(message).user_id === "ada"), "itself it is not told", 300)
  })

  test("5. Numeric user_id equals its string form; channel_data with odd spacing/key order verifies byte-exactly", async () => {
    const channel = `presence-${fresh()}`
    const [one, two] = [await openPusher(node), await openPusher(node)]
    await one.join(channel, '{ "user_info" : {"b":2,  "a":1 } ,"user_id":7}')
    const { presence } = json(await two.join(channel, '{"user_id":"7"}'))
    assert.deepEqual(presence, { count: 1, ids: ["7"], hash: { 7: { b: 2, a: 1 } } })
  })

  test("6. Bad signature, wrong key, auth for another socket_id: error, not subscribed, connection stays", async () => {
    const [raw, other] = [await openPusher(node), await openPusher(node)]
    const channel = `private-${fresh()}`
    for (const auth of [`${APP.key}:${"0".repeat(64)}`, `other:${hmac(`${raw.id}:${channel}`)}`, `${APP.key}:${hmac(`${other.id}:${channel}`)}`, "", "nonsense"]) {
      const before = raw.told.length
      raw.subscribe(channel, undefined, auth)
      await until(() => raw.told.length >= before + 2, "it is told")
      const [error, refused] = raw.told.slice(before)
      assert.equal(error.event, "pusher:error")
      assert.equal(error.data.code, null)
      assert.match(error.data.message, /Invalid signature/)
      assert.deepEqual([refused.event, refused.channel, refused.data.type, refused.data.status], ["pusher:subscription_error", channel, "AuthError", 401])
    }
    // Signed for a longer name, whose end is passed off as data.
    raw.subscribe(channel, "guest", `${APP.key}:${hmac(`${raw.id}:${channel}:guest`)}`)
    await raw.find(({ data }) => data?.message?.includes("socket_id:channel,"), "it is told that data is no part of the name")
    await backend(node).trigger(channel, "ev", {})
    await raw.join(channel)
    assert.equal(raw.events(channel, "ev").length, 0)
    assert.equal(raw.closed, null)
  })

  test("7. Duplicate subscribe idempotent; unsubscribe when not subscribed harmless", async () => {
    const channel = `presence-${fresh()}`
    const [watcher, raw] = [await openPusher(node), await openPusher(node)]
    await watcher.join(channel, user("watcher"))
    raw.say({ event: "pusher:unsubscribe", data: { channel } })
    await raw.join(channel, user("ada"))
    raw.subscribe(channel, user("ada"))
    raw.say({ event: "pusher:unsubscribe", data: { channel: "never" } })
    raw.say({ event: "pusher:ping", data: {} })
    await raw.find(({ event }) => event === "pusher:pong", "it lives on")
    await holds(() => watcher.events(channel, "pusher_internal:member_added").length === 1, "added once", 500)
    assert.equal(watcher.events(channel, "pusher_internal:member_removed").length, 0)
  })

  test("8. Drop without close frame: member removed; reconnect gives fresh snapshot and one net transition", async () => {
    const room = fresh()
    const watcher = await openPusher(node)
    await watcher.join(`presence-${room}`, user("watcher"))
    const ada = await join("pusher", node, room, "ada")
    ada.drop()
    await until(() => ada.channel.subscribed === false || ada.channel.members.count === 2, "dropped")
    await until(() => ada.sees("ada", "watcher"), "back, with a fresh snapshot", 8000, ada.users)
    const moves = watcher.told.filter((message) => /member_/.test(message.event)).length
    assert([1, 3].includes(moves), `came, or came, went and came: ${moves}`)
    ada.vanish()
    await watcher.find(({ event }) => event === "pusher_internal:member_removed", "gone after the grace")
  })

  test("9. Client events: not to sender, user_id stamped, non-client- / public / unsubscribed rejected, 11th in a second 4301, still connected", async () => {
    const room = `presence-${fresh()}`
    const [one, two] = [await openPusher(node), await openPusher(node)]
    await one.join(room, user("ada"))
    await two.join(room, user("bo"))
    one.say({ event: "client-typing", channel: room, data: { t: 1 }, user_id: "forged" })
    const heard = await two.find(({ event }) => event === "client-typing", "the other hears it")
    assert.deepEqual([heard.channel, heard.user_id, heard.data], [room, "ada", { t: 1 }])
    assert.equal(one.events(room, "client-typing").length, 0)
    const errors = () => one.told.filter(({ event }) => event === "pusher:error").map(({ data }) => data.code)
    await one.join("public-x")
    for (const [event, channel] of [["typing", room], ["client-x", "public-x"], ["client-x", "private-never"]]) one.say({ event, channel, data: {} })
    await until(() => errors().length === 3, "three are refused", 3000, errors)
    assert.deepEqual(errors(), [null, null, null])
    await new Promise((resolve) => setTimeout(resolve, 1100))
    for (let n = 0; n < 12; n++) one.say({ event: "client-many", channel: room, data: { n } })
    await until(() => errors().includes(4301), "over the rate")
    await holds(() => two.events(room, "client-many").length <= 11 && one.closed === null, "ten, perhaps eleven, and still connected", 500)
  })

  test("10. Close-code matrix, including never closing with 43xx", async () => {
    for (const [path, code] of [["/app/nobody?protocol=7", 4001], [`/app/${APP.key}?protocol=4`, 4007], [`/app/${APP.key}?protocol=8`, 4007], [`/app/${APP.key}`, 4008]]) {
      const raw = await open(node, path)
      await until(() => raw.closed, `${path} is closed`)
      assert.equal(raw.closed.code, code, path)
      assert.equal(raw.told.length, 0)
    }
    const unknown = pusherClient(node, "ada")
    unknown.disconnect()
    const going = await startNode(settings)
    const [raw, client] = [await openPusher(going), pusherClient(going, "ada")]
    await until(() => client.connection.state === "connected", "connected")
    const large = await openPusher(going)
    large.say(JSON.stringify({ event: "client-x", channel: "x", data: "x".repeat(70_000) }))
    await until(() => large.closed, "too large a message ends it")
    assert.equal(large.closed.code, 1009)
    await going.stop()
    assert.equal(raw.closed.code, 4200)
    await until(() => ["connecting", "unavailable"].includes(client.connection.state), "the client tries again", 3000, () => client.connection.state)
  })

  test("11. REST signatures (vectors above), skewed clock 601 s 401, body_md5 mismatch 401, socket_id exclusion", async () => {
    const call = async (method, target, body, { at = Math.floor(Date.now() / 1000), md5, secret } = {}) => {
      const query = { auth_key: APP.key, auth_timestamp: at, auth_version: "1.0", ...(body && { body_md5: md5 ?? createHash("md5").update(body).digest("hex") }) }
      const text = Object.keys(query).sort().map((name) => `${name}=${query[name]}`).join("&")
      return node.request(method, `${target}?${text}&auth_signature=${hmac(`${method}\n${target}\n${text}`, secret)}`, { body, headers: { "content-type": "application/json" } })
    }
    const body = JSON.stringify({ name: "ev", channels: ["presence-room"], data: '{"a":1}' })
    const now = Math.floor(Date.now() / 1000)
    const events = `/apps/${APP.id}/events`
    assert.deepEqual([(await call("POST", events, body)).status, (await call("POST", events, body, { at: now - 590 })).status], [200, 200])
    for (const wrong of [{ at: now - 610 }, { at: now + 610 }, { md5: "0".repeat(32) }, { secret: "other" }]) assert.equal((await call("POST", events, body, wrong)).status, 401, JSON.stringify(wrong))
    assert.equal((await node.request("POST", events, { body })).status, 401)
    assert.equal((await call("POST", "/apps/99/events", body)).status, 404)
    assert.equal((await call("POST", events, JSON.stringify({ name: "ev", channels: ["a"], data: "x".repeat(10_241) }))).status, 413)
    for (const bad of ["{", "{}", JSON.stringify({ name: "ev", channels: [], data: "" }), JSON.stringify({ name: "ev", channels: ["a b"], data: "" })]) assert.equal((await call("POST", events, bad)).status, 400, bad)

    const channel = `presence-${fresh()}`
    const [one, two] = [await openPusher(node), await openPusher(node)]
    await one.join(channel, user("ada"))
    await two.join(channel, user("bo"))
    await backend(node).trigger(channel, "App\\Events\\Msg", { a: 1 }, { socket_id: one.id })
    const heard = await two.find(({ event }) => event === "App\\Events\\Msg", "the other hears it")
    assert.deepEqual([heard.data, heard.user_id], ['{"a":1}', undefined])
    assert.equal(one.events(channel, "App\\Events\\Msg").length, 0)
    assert.equal((await backend(node).triggerBatch([{ channel, name: "b", data: 1 }, { channel: "other", name: "c", data: 2, info: "subscription_count" }])).status, 200)
    await one.find(({ event }) => event === "b", "a batch is told")
  })

  test("12. /channels prefix + info, /users distinct, 400 rules", async () => {
    const room = `presence-${fresh()}`
    const [one, two, three] = [await openPusher(a), await openPusher(b), await openPusher(b)]
    await one.join(room, user("ada"))
    await two.join(room, user("ada"))
    await three.join(room, user("bo"))
    await three.join("news")
    const get = async (path, params) => (await backend(a).get({ path, params })).json()
    const status = (path, params) => backend(a).get({ path, params }).then(({ status }) => status, ({ status }) => status)
    await until(async () => same(await get("/channels", { filter_by_prefix: room, info: "user_count" }), { channels: { [room]: { user_count: 2 } } }), "counts of the cluster")
    assert.deepEqual(Object.keys((await get("/channels")).channels).filter((name) => name === "news"), ["news"])
    assert.deepEqual(await get(`/channels/${room}`, { info: "user_count,subscription_count" }), { occupied: true, user_count: 2, subscription_count: 3 })
    assert.deepEqual(await get("/channels/nobody"), { occupied: false })
    assert.deepEqual(await get(`/channels/${room}/users`), { users: [{ id: "ada" }, { id: "bo" }] })
    assert.equal(await status("/channels", { info: "user_count" }), 400)
    assert.equal(await status("/channels/news", { info: "user_count" }), 400)
    assert.equal(await status("/channels/news/users"), 400)
  })

  test("13. Webhook verifies with the SDK; each transition is told once for two nodes, also when the first attempt fails", async () => {
    const channel = `presence-${fresh()}`
    const told = () =>
      calls.flatMap((call) => {
        const webhook = backend(a).webhook(call)
        assert(webhook.isValid(), call.rawBody)
        return webhook.getEvents().filter((event) => event.channel === channel)
      })
    const names = () => told().map(({ name, user_id }) => [name, user_id].filter(Boolean).join(" "))
    refusals = 1
    const [one, two, three] = [await openPusher(a), await openPusher(b), await openPusher(b)]
    await Promise.all([one.join(channel, user("ada")), two.join(channel, user("ada")), three.join(channel, user("bo"))])
    await until(() => names().length >= 3, "they came", 5000, names)
    three.say({ event: "client-hi", channel, data: { x: 1 } })
    await until(() => told().some(({ name }) => name === "client_event"), "an event of a client")
    const event = told().find(({ name }) => name === "client_event")
    assert.deepEqual([event.event, event.data, event.socket_id, event.user_id], ["client-hi", '{"x":1}', three.id, "bo"])
    for (const socket of [one, two, three]) socket.say({ event: "pusher:unsubscribe", data: { channel } })
    // Two nodes tell, each in its own order.
    await until(() => names().length >= 7, "all are gone", 5000, names)
    await holds(() => names().length === 7, "each once", 1000, names)
    const sorted = names().filter((name) => name !== "client_event bo").sort()
    assert.deepEqual(sorted, ["channel_occupied", "channel_vacated", "member_added ada", "member_added bo", "member_removed ada", "member_removed bo"])
    assert.equal(calls[0].headers["content-type"], "application/json")

    // A burst larger than any batch, and a node that is stopped in the midst of it.
    const third = await startNode({ ...settings, REDIS_URL: redis.url, ROLLCALL_PUSHER_WEBHOOKS: `http://127.0.0.1:${hooks.address().port}/hooks` })
    const rooms = Array.from({ length: 90 }, () => `presence-${fresh()}`)
    const crowd = await Promise.all(Array.from({ length: 12 }, () => openPusher(third)))
    await Promise.all(crowd.flatMap((raw, n) => rooms.map((name) => raw.join(name, user(`c${n}`)))))
    const all = new Set(rooms)
    const count = (name) => calls.flatMap(({ rawBody }) => JSON.parse(rawBody).events).filter((event) => event.name === name && all.has(event.channel)).length
    const counts = () => ["channel_occupied", "member_added", "member_removed", "channel_vacated"].map(count)
    await until(() => same(counts(), [90, 1080, 0, 0]), "all came", 10_000, counts)
    assert.equal((await third.stop()).code, 0)
    await until(() => same(counts(), [90, 1080, 1080, 90]), "all are gone", 15_000, counts)

    const cache = `cache-${fresh()}`
    await one.join(cache)
    await one.find(({ event, channel }) => event === "pusher:cache_miss" && channel === cache, "nothing was said yet")
    await until(() => calls.some(({ rawBody }) => rawBody.includes(`{"name":"cache_miss","channel":"${cache}"}`)), "the backend is told")
    await until(() => calls.some(({ rawBody }) => rawBody.includes(`{"name":"subscription_count","channel":"${cache}","subscription_count":1}`)), "and how many they are")
    await backend(a).trigger(cache, "price", { is: 7 })
    await two.join(cache)
    const last = await two.find(({ event, channel }) => event === "price" && channel === cache, "who comes later is told what was said last")
    assert.equal(last.data, '{"is":7}')
    const subscribers = () => one.events(cache, "pusher_internal:subscription_count").map((message) => json(message).subscription_count)
    await until(() => subscribers().at(-1) === 2, "subscribers are told how many they are", 3000, subscribers)
  })

  test("14. signin, #server-to-user- delivery; another user's channel refused; terminate_connections; watchlists", async () => {
    const ada = pusherClient(a, "ada", { watchlist: ["bo"] })
    const seen = []
    ada.user.watchlist.bind("online", ({ user_ids }) => seen.push(["online", ...user_ids]))
    ada.user.watchlist.bind("offline", ({ user_ids }) => seen.push(["offline", ...user_ids]))
    ada.signin()
    await ada.user.signinDonePromise
    const bo = pusherClient(b, "bo")
    bo.signin()
    await bo.user.signinDonePromise
    await until(() => same(seen, [["online", "bo"]]), "ada sees bo come", 4000, () => seen)
    const heard = []
    bo.user.bind("hello", (data) => heard.push(data))
    await until(async () => (await backend(a).sendToUser("bo", "hello", { x: 1 }), heard.length > 0), "bo is told")
    assert.deepEqual(heard[0], { x: 1 })
    const raw = await openPusher(a)
    const data = JSON.stringify({ id: "eve" })
    raw.subscribe("#server-to-user-bo", undefined, "")
    await raw.find(({ event }) => event === "pusher:error", "without a sign-in it is refused")
    raw.say({ event: "pusher:signin", data: { auth: `${APP.key}:${hmac(`${raw.id}::user::${data}`)}`, user_data: data } })
    await raw.find(({ event }) => event === "pusher:signin_success", "signed in")
    raw.subscribe("#server-to-user-bo", undefined, "")
    await until(() => raw.events("#server-to-user-bo", "pusher:subscription_error").length === 2, "that of another user is refused")
    await raw.join("#server-to-user-eve")
    raw.say({ event: "pusher:signin", data: { auth: `${APP.key}:${hmac(`${raw.id}::user::${JSON.stringify({ id: "bo" })}`)}`, user_data: JSON.stringify({ id: "bo" }) } })
    await until(() => raw.told.filter(({ event }) => event === "pusher:error").length === 3, "nor may it become another")
    await backend(a).terminateUserConnections("bo")
    await until(() => bo.connection.state === "disconnected", "bo is away for good", 3000, () => bo.connection.state)
    await until(() => same(seen, [["online", "bo"], ["offline", "bo"]]), "ada sees bo go", 4000, () => seen)
    assert.equal(ada.connection.state, "connected")
    assert.equal(raw.closed, null)
    const many = JSON.stringify({ id: "x", watchlist: Array.from({ length: 101 }, (_, n) => `u${n}`) })
    const late = await openPusher(a)
    late.say({ event: "pusher:signin", data: { auth: `${APP.key}:${hmac(`${late.id}::user::${many}`)}`, user_data: many } })
    assert.equal((await late.find(({ event }) => event === "pusher:error", "too many to watch")).data.code, 4302)
  })

  test("15. 101st member / large info / 129-char id refused without disturbing existing members", async () => {
    const small = await startNode({ ...settings, ROLLCALL_MAX_CHANNEL_MEMBERS: "100" })
    try {
      const channel = `presence-${fresh()}`
      const sockets = await Promise.all(Array.from({ length: 101 }, () => openPusher(small)))
      const [late, ...members] = sockets
      await Promise.all(members.map((socket, n) => socket.join(channel, user(`u${n}`))))
      const refused = async (data, code) => {
        const before = late.told.length
        late.subscribe(channel, data)
        await until(() => late.told.length >= before + 2, "refused")
        const [error, failed] = late.told.slice(before)
        assert.deepEqual([error.event, error.data.code, failed.event], ["pusher:error", code, "pusher:subscription_error"])
      }
      await refused(user("one too many"), 4100)
      await refused(user("u1", { large: "x".repeat(5000) }), null)
      await refused(user("x".repeat(129)), null)
      await refused(user("__proto__"), null)
      await late.join(channel, user("u1"))
      assert.equal((await small.get(`/v1/channels/${channel.slice(9)}/presence/count`)).json?.online ?? 100, 100)
      assert(members.every((socket) => socket.closed === null && socket.events(channel, "pusher_internal:member_removed").length === 0))
    } finally {
      closeRaw()
      await small.stop()
    }
  })

  test("encrypted channels are relayed as they are, and their clients say nothing", async () => {
    const channel = `private-encrypted-${fresh()}`
    const master = Buffer.alloc(32, 7).toString("base64")
    const raw = await openPusher(node)
    await raw.join(channel)
    await backend(node, { encryptionMasterKeyBase64: master }).trigger(channel, "secret", { a: 1 })
    const { data } = await raw.find(({ event }) => event === "secret", "it comes")
    assert.deepEqual(Object.keys(JSON.parse(data)).sort(), ["ciphertext", "nonce"])
    raw.say({ event: "client-x", channel, data: {} })
    await raw.find(({ event }) => event === "pusher:error", "no client events")
  })
})
