import Pusher from "pusher-js";

const pusher = new Pusher("demo-key", {
  cluster: "any", wsHost: "localhost", wsPort: 8000, forceTLS: false, enabledTransports: ["ws"],
  channelAuthorization: {
    endpoint: "http://localhost:8000/pusher/auth", params: { user_id: "alan", user_info: '{"name":"Alan"}' },
  },
});
const room = pusher.subscribe("presence-lobby");
const show = () => console.log("here:", Object.keys(room.members.members));
for (const event of ["subscription_succeeded", "member_added", "member_removed"]) room.bind(`pusher:${event}`, show);
room.bind("client-wave", ({ name }) => console.log(name, "waves"));
room.bind("pusher:subscription_succeeded", () => room.trigger("client-wave", { name: "Alan" }));
