-- Makes what backends were told of a channel equal to what is.
-- KEYS: the set of what was told, the set of users, then the hash of each user asked about.
-- ARGV: how long to remember, in seconds, then the users. Answers what has changed, what is there, how many are.
-- The empty name stands for "somebody is in the channel".
local told, ttl = KEYS[1], ARGV[1]
local flipped, there = {}, {}

local function compare(name, is_there)
  local changed
  if is_there then
    there[#there + 1] = name
    changed = redis.call('SADD', told, name)
  else
    changed = redis.call('SREM', told, name)
  end
  if changed == 1 then flipped[#flipped + 1] = name end
end

for at = 3, #KEYS do
  compare(ARGV[at - 1], redis.call('EXISTS', KEYS[at]) == 1)
end
local users = redis.call('SCARD', KEYS[2])
compare('', users > 0)
redis.call('EXPIRE', told, ttl)
return { flipped, there, users }
