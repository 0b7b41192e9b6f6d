/** Server-sent events: they only tell, so whoever uses them watches and is not there. */

export function events(_query, on) {
  const streams = new Map();
  const members = (list) => {
    const users = {};
    for (const { user, ref, meta } of list) (users[user] ??= { metas: [] }).metas.push({ ...meta, phx_ref: ref });
    return users;
  };
  const watch = (topic, ref) => {
    const stream = new EventSource(`/v1/channels/${encodeURIComponent(topic)}/presence/events`);
    streams.set(topic, stream);
    stream.addEventListener("snapshot", ({ data }) => {
      const all = JSON.parse(data).members.flatMap(({ user, metas, refs }) => refs.map((ref, at) => ({ user, ref, meta: metas[at] })));
      on.message([ref, ref, topic, "phx_reply", { status: "ok", response: {} }]);
      on.message([ref, null, topic, "presence_state", members(all)]);
    });
    stream.addEventListener("diff", ({ data }) => {
      const { joins, leaves } = JSON.parse(data);
      on.message([null, null, topic, "presence_diff", { joins: members(joins), leaves: members(leaves) }]);
    });
  };
  const end = (topic) => {
    streams.get(topic)?.close();
    streams.delete(topic);
  };
  queueMicrotask(() => on.open());
  return {
    send([, ref, topic, event]) {
      if (event === "heartbeat") queueMicrotask(() => on.message([null, ref, topic, "phx_reply", { status: "ok", response: {} }]));
      if (event === "phx_join" || event === "phx_leave") end(topic);
      if (event === "phx_join") watch(topic, ref);
    },
    close() {
      for (const topic of [...streams.keys()]) end(topic);
      queueMicrotask(() => on.close(1000));
    },
  };
}
