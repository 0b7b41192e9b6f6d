/**
 * Supabase Realtime: Phoenix's messages with other joins. Topics begin with `realtime:`, the join's `config` says who
 * we are and what we want to hear, and nobody is present who does not `track`.
 */

import { address } from "./phoenix.js";

const PREFIX = "realtime:";

export function supabase(query, on) {
  const socket = new WebSocket(address("/realtime/v1/websocket", { apikey: query.token ?? "demo", vsn: "2.0.0" }));
  const joining = new Map(); // By ref, what to show once that join is answered.
  const say = (...message) => socket.send(JSON.stringify(message));
  const track = (joinRef, topic, meta) => say(joinRef, `${joinRef}-track`, topic, "presence", { type: "presence", event: "track", payload: meta });

  socket.onopen = () => on.open();
  socket.onclose = ({ code }) => on.close(code);
  socket.onmessage = ({ data }) => {
    const [joinRef, ref, topic, event, payload] = JSON.parse(data);
    const joined = event === "phx_reply" && payload.status === "ok" && joining.get(ref);
    if (joined) track(ref, topic, joined);
    joining.delete(ref);
    on.message([joinRef, ref, topic.startsWith(PREFIX) ? topic.slice(PREFIX.length) : topic, event, payload]);
  };
  return {
    send([joinRef, ref, topic, event, payload]) {
      if (event === "heartbeat") return say(joinRef, ref, topic, event, payload);
      if (event !== "phx_join") return say(joinRef, ref, PREFIX + topic, event, payload);
      if (!payload.observe) joining.set(ref, payload.meta ?? {});
      say(joinRef, ref, PREFIX + topic, event, { config: { presence: { key: payload.user_id, enabled: true }, broadcast: { self: false } } });
    },
    close: () => socket.close(),
  };
}
