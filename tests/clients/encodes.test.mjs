// Each change is encoded once for each wire form in use, however many clients there are of each kind: counted by
// the server, and by what the clients are told.

import assert from "node:assert/strict"
import { createHmac } from "node:crypto"
import { after, before, test } from "node:test"
import WebSocket from "ws"
import { startNode, until } from "../phoenix/server.mjs"

const EACH = 10
let node
before(async () => (node = await startNode({ ROLLCALL_WORKERS: "4" })))
after(() => node.stop())

/** Opens a socket and gathers what it is told. */
async function open(path) {
  const socket = new WebSocket(node.url.replace(/^http/, "ws") + path)
  const told = []
  socket.on("message", (data) => told.push(JSON.parse(data)))
  await new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject))
  return { told, say: (message) => socket.send(JSON.stringify(message)), close: () => socket.terminate() }
}

/** One client of each kind in `room`, under this name: with `about`, what it was told of a user. */
const kinds = {
  phoenix_v2: async (room, user) => {
    const client = await open("/socket/websocket?vsn=2.0.0")
    client.say(["1", "1", room, "phx_join", { user_id: user }])
    return { ...client, about: (name) => client.told.filter(([, , , event, payload]) => event.startsWith("presence_") && name in (payload.joins ?? payload)) }
  },
  phoenix_v1: async (room, user) => {
    const client = await open("/socket/websocket?vsn=1.0.0")
    client.say({ topic: room, event: "phx_join", payload: { user_id: user }, ref: "1" })
    return { ...client, about: (name) => client.told.filter(({ event, payload }) => event.startsWith("presence_") && name in (payload.joins ?? payload)) }
  },
  supabase_v2: async (room, user) => {
    const client = await open("/realtime/v1/websocket?apikey=x&vsn=2.0.0")
    const topic = `realtime:${room}`
    client.say(["1", "1", topic, "phx_join", { config: { presence: { key: user, enabled: true } } }])
    client.say(["1", "2", topic, "presence", { type: "presence", event: "track", payload: {} }])
    return { ...client, about: (name) => client.told.filter(([, , , event, payload]) => event.startsWith("presence_") && name in (payload.joins ?? payload)) }
  },
  pusher: async (room, user) => {
    const client = await open("/app/demo-key?protocol=7")
    await until(() => client.told.length > 0, "the server says hello")
    const { socket_id } = JSON.parse(client.told[0].data)
    const [channel, channel_data] = [`presence-${room}`, JSON.stringify({ user_id: user })]
    const signed = createHmac("sha256", "demo-secret").update(`${socket_id}:${channel}:${channel_data}`).digest("hex")
    client.say({ event: "pusher:subscribe", data: { auth: `demo-key:${signed}`, channel_data, channel } })
    const names = ({ event, data }) => (event.endsWith("member_added") ? [JSON.parse(data).user_id] : event.endsWith("succeeded") ? JSON.parse(data).presence.ids : [])
    return { ...client, about: (name) => client.told.filter((message) => names(message).includes(name)) }
  },
}

async function encodes() {
  const text = await (await fetch(`${node.url}/metrics`)).text()
  return Object.fromEntries([...text.matchAll(/rollcall_encodes_total\{format="(\w+)"\} (\d+)/g)].map(([, form, count]) => [form, Number(count)]))
}

test("a change is encoded once for each wire form, whatever the mix of clients", async () => {
  const room = `mix-${process.pid}`
  const clients = []
  for (const [kind, join] of Object.entries(kinds)) {
    for (let n = 0; n < EACH; n++) clients.push(await join(room, `${kind}-${n}`))
  }
  const everybody = Object.keys(kinds).flatMap((kind) => Array.from({ length: EACH }, (_, n) => `${kind}-${n}`))
  await until(() => clients.every((client) => everybody.every((name) => client.about(name).length > 0)), "all see all", 10_000)
  const before = await encodes()
  const late = await kinds.phoenix_v2(room, "late")
  await until(() => clients.every((client) => client.about("late").length > 0), "all see who came late", 10_000)
  const spent = await encodes()
  for (const kind of Object.keys(kinds)) assert.equal(spent[kind] - before[kind], 1, `${kind}: ${JSON.stringify([before, spent])}`)

  late.say(["1", "3", room, "broadcast", { type: "broadcast", event: "wave", payload: { n: 1 } }])
  const heard = (client) => client.told.some((message) => JSON.stringify(message).includes("wave"))
  await until(() => clients.every(heard), "all hear the wave")
  const said = await encodes()
  for (const kind of Object.keys(kinds)) assert.equal(said[kind] - spent[kind], 1, kind)
  ;[...clients, late].forEach((client) => client.close())
})
