const channel = "http://localhost:8000/v1/channels/lobby";

const { online } = await (await fetch(`${channel}/presence/count`)).json();
console.log(online, "here");

const { members } = await (await fetch(`${channel}/presence`)).json();
for (const { user, metas } of members) console.log(user, "shows", metas[0]);
