// People: one interface to the real clients of each dialect, so that one test serves them all.
//
// `join(kind, node, room, user, meta)` gives somebody who is in the room and sees it. `users()` is whom the client
// shows, `metas(user)` what it shows of them; `wave(payload)` and `waves` are broadcasts; `leave()` is a leave by
// word, `vanish()` a page that is gone, `drop()` a connection that is lost and comes back.

import assert from "node:assert/strict"
import { createClient } from "@supabase/supabase-js"
import { Presence, Socket } from "phoenix"
import PusherModule from "pusher-js"
import PusherServer from "pusher"
import WebSocket from "ws"
import { until } from "../phoenix/server.mjs"

globalThis.WebSocket ??= WebSocket
export const Pusher = PusherModule.Pusher ?? PusherModule.default ?? PusherModule
export const APP = { id: "7", key: "app-key", secret: "app-secret" }
/** What a node needs to know of the application. */
export const APPS = { ROLLCALL_PUSHER_APPS: `${APP.id}:${APP.key}:${APP.secret}` }
export const KINDS = ["phoenix", "supabase", "pusher"]

let number = 0
/** A name that no other test uses, and every dialect can say. */
export const fresh = () => `room-${process.pid}-${++number}`

export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b)

const open = new Set()
/** Ends everybody. */
export async function endAll() {
  await Promise.all([...open].map((person) => person.end()))
  open.clear()
}

/** Pusher's library for backends, speaking to this node. */
export const backend = (node, more = {}) =>
  new PusherServer({ appId: APP.id, key: APP.key, secret: APP.secret, host: "127.0.0.1", port: String(node.port), useTLS: false, ...more })

/** A real pusher-js, whose backend says that it is `user`. */
export function pusherClient(node, user, { info = {}, watchlist, ...options } = {}) {
  const signer = backend(node)
  const client = new Pusher(APP.key, {
    cluster: "any",
    wsHost: "127.0.0.1",
    wsPort: node.port,
    forceTLS: false,
    enabledTransports: ["ws"],
    channelAuthorization: {
      customHandler: ({ socketId, channelName }, done) =>
        done(null, channelName.startsWith("presence-") ? signer.authorizeChannel(socketId, channelName, { user_id: user, user_info: info }) : signer.authorizeChannel(socketId, channelName)),
    },
    userAuthentication: {
      customHandler: ({ socketId }, done) => done(null, signer.authenticateUser(socketId, { id: user, ...(watchlist && { watchlist }) })),
    },
    ...options,
  })
  client.errors = []
  client.connection.bind("error", ({ data, error }) => client.errors.push(data ?? error?.data))
  client.end = () => client.disconnect()
  open.add(client)
  return client
}

/** A real supabase-js. */
export function supabaseClient(node, key = "any key", options = {}) {
  const client = createClient(node.url, key, {
    auth: { persistSession: false, autoRefreshToken: false },
    ...options,
    realtime: { transport: WebSocket, ...options.realtime },
  })
  client.end = () => client.realtime.disconnect()
  open.add(client)
  return client
}

const makers = {
  async phoenix(node, room, user, meta) {
    const socket = new Socket(node.socketUrl, { transport: WebSocket })
    socket.connect()
    const channel = socket.channel(room, { user_id: user, meta })
    const presence = new Presence(channel)
    const waves = []
    let isSynced = false
    presence.onSync(() => (isSynced = true))
    channel.on("broadcast", ({ event, payload }) => event === "wave" && waves.push(payload))
    channel.join()
    await until(() => isSynced && user in presence.state, `${user} is in ${room}`, 8000)
    const push = (event, payload) => new Promise((resolve) => channel.push(event, payload).receive("ok", resolve))
    return {
      users: () => Object.keys(presence.state),
      metas: (who) => (presence.state[who]?.metas ?? []).map(({ phx_ref: _, phx_ref_prev: __, ...meta }) => meta),
      wave: (payload) => push("broadcast", { type: "broadcast", event: "wave", payload }),
      update: (meta) => push("presence", { type: "presence", event: "track", payload: meta }),
      waves,
      leave: () => channel.leave(),
      drop: () => socket.conn._socket.resetAndDestroy(),
      end: () => socket.disconnect(),
    }
  },

  async supabase(node, room, user, meta) {
    const client = supabaseClient(node)
    open.delete(client)
    const channel = client.channel(room, { config: { presence: { key: user } } })
    const waves = []
    channel.on("presence", { event: "sync" }, () => {})
    channel.on("broadcast", { event: "wave" }, ({ payload }) => waves.push(payload))
    // As applications do: track whenever it is joined, again after a reconnect.
    channel.subscribe((status) => status === "SUBSCRIBED" && channel.track(meta))
    await until(() => user in channel.presenceState(), `${user} is in ${room}`, 8000)
    return {
      users: () => Object.keys(channel.presenceState()),
      metas: (who) => (channel.presenceState()[who] ?? []).map(({ presence_ref: _, ...meta }) => meta),
      wave: (payload) => channel.send({ type: "broadcast", event: "wave", payload }),
      update: (meta) => channel.track(meta),
      waves,
      leave: () => client.removeChannel(channel),
      drop: () => (client.realtime.conn ?? client.realtime.socketAdapter?.getSocket?.().conn)._socket.resetAndDestroy(),
      end: () => client.realtime.disconnect(),
    }
  },

  async pusher(node, room, user, meta) {
    const client = pusherClient(node, user, { info: meta })
    open.delete(client)
    const name = `presence-${room}`
    const channel = client.subscribe(name)
    const waves = []
    channel.bind("client-wave", (payload) => waves.push(payload))
    await until(() => channel.subscribed && channel.members.me?.id === user, `${user} is in ${room}`, 8000)
    return {
      users: () => Object.keys(channel.members.members),
      // One for each user: what it came with.
      metas: (who) => [channel.members.get(who)?.info].filter(Boolean),
      wave: (payload) => assert(channel.trigger("client-wave", payload)),
      waves,
      leave: () => client.unsubscribe(name),
      drop: () => client.connection.connection.transport.socket._socket?.resetAndDestroy?.() ?? client.connection.connection.transport.socket.close(),
      end: () => client.disconnect(),
      channel,
    }
  },
}

/** Somebody who has joined `room` on `node` with the client of this kind. */
export async function join(kind, node, room, user, meta = { name: user }) {
  const person = { kind, user, ...(await makers[kind](node, room, user, meta)) }
  person.sees = (...users) => same(person.users().sort(), users.sort())
  person.vanish = () => {
    open.delete(person)
    person.end()
  }
  open.add(person)
  return person
}
