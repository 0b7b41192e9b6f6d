/**
 * Pusher's protocol 7. Who subscribes to a presence channel is in it, under a name that the application's backend has
 * signed: here the server's own demo application signs for anybody. Members are told as users, not as connections, and
 * show what they came with: to show something else, we leave and come back.
 */

import { address } from "./phoenix.js";

const KEY = "demo-key";
const PREFIX = "presence-";

export function pusher(query, on) {
  const socket = new WebSocket(address(`/app/${KEY}`, { protocol: "7", client: "rollcall", version: "1" }));
  const rooms = new Map(); // By topic: our join's ref, and who we are.
  let id;
  let beat;
  const say = (event, data, channel) => socket.send(JSON.stringify({ event, data, ...(channel && { channel }) }));
  const meta = (user, info) => ({ metas: [{ ...info, phx_ref: user }] });
  const answer = (topic, status, response = {}) => {
    const { ref } = rooms.get(topic) ?? {};
    if (ref) on.message([ref, ref, topic, "phx_reply", { status, response }]);
  };

  async function subscribe(topic) {
    const { user, info } = rooms.get(topic);
    const channel = PREFIX + topic;
    const body = new URLSearchParams({ socket_id: id, channel_name: channel, user_id: user, user_info: JSON.stringify(info) });
    const signed = await fetch("/pusher/auth", { method: "POST", body }).catch(() => null);
    if (!signed?.ok) return answer(topic, "error", { reason: "nobody signs for Pusher's clients here: the server has applications of its own" });
    const { auth, channel_data } = await signed.json();
    if (socket.readyState === WebSocket.OPEN) say("pusher:subscribe", { auth, channel_data, channel });
  }

  const read = {
    "pusher:connection_established": (_, { socket_id }) => {
      id = socket_id;
      on.open();
    },
    "pusher:pong": () => on.message([null, beat, "phoenix", "phx_reply", { status: "ok", response: {} }]),
    "pusher_internal:subscription_succeeded": (topic, { presence }) => {
      const state = Object.fromEntries(presence.ids.map((user) => [user, meta(user, presence.hash[user])]));
      answer(topic, "ok");
      on.message([rooms.get(topic)?.ref ?? null, null, topic, "presence_state", state]);
    },
    "pusher_internal:member_added": (topic, { user_id, user_info }) =>
      on.message([null, null, topic, "presence_diff", { joins: { [user_id]: meta(user_id, user_info) }, leaves: {} }]),
    "pusher_internal:member_removed": (topic, { user_id }) =>
      on.message([null, null, topic, "presence_diff", { joins: {}, leaves: { [user_id]: meta(user_id) } }]),
    "pusher:subscription_error": (topic, { error }) => answer(topic, "error", { reason: error }),
    "client-wave": (topic, payload) => on.message([null, null, topic, "broadcast", { type: "broadcast", event: "wave", payload }]),
  };
  socket.onclose = ({ code }) => on.close(code);
  socket.onmessage = ({ data: text }) => {
    const { event, channel = "", data } = JSON.parse(text);
    read[event]?.(channel.slice(PREFIX.length), typeof data === "string" ? JSON.parse(data) : data);
  };
  return {
    send([, ref, topic, event, payload]) {
      if (event === "heartbeat") {
        beat = ref;
        return say("pusher:ping", {});
      }
      if (event === "phx_join") {
        rooms.set(topic, { ref, user: payload.user_id, info: payload.meta ?? {} });
        return payload.observe ? answer(topic, "error", { reason: "Pusher's clients cannot watch without being there" }) : subscribe(topic);
      }
      if (event === "broadcast") return say("client-wave", payload.payload, PREFIX + topic);
      if (event === "phx_leave" || payload.event) say("pusher:unsubscribe", { channel: PREFIX + topic });
      if (payload.event === "track") {
        rooms.get(topic).info = payload.payload;
        subscribe(topic);
      }
    },
    close: () => socket.close(),
  };
}
