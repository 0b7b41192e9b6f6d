import { createClient } from "@supabase/supabase-js";

const supabase = createClient("http://localhost:8000", "any-key");
const room = supabase.channel("lobby", { config: { presence: { key: "ada" } } });
room.on("presence", { event: "sync" }, () => console.log("here:", Object.keys(room.presenceState())));
room.on("broadcast", { event: "wave" }, ({ payload }) => console.log(payload.name, "waves"));
room.subscribe(async (status) => {
  if (status !== "SUBSCRIBED") return;
  await room.track({ name: "Ada" });
  await room.send({ type: "broadcast", event: "wave", payload: { name: "Ada" } });
});
