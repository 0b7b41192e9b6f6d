-- Refreshes one node's seats in a channel and says what is missing of them. Come late, it does nothing.
-- KEYS  1 users of the channel   2 versions by node   3… the user's hash, one for each seat
-- ARGV  1 life of keys in seconds   2 node   3 version, 0 where the node has never had a part
--       then for each seat: user, field
-- Returns {numbers of the seats that are missing, from 1}, {node, version, node:digest, digest, …}, 1 where
-- the part was lost altogether or is older than it should be, and the number of users
local ttl, missing = ARGV[1], {}
local stands = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or 0)
if ARGV[3] ~= '0' and stands ~= tonumber(ARGV[3]) then
  return { {}, {}, stands < tonumber(ARGV[3]) and 1 or 0, 0 }
end
for i = 3, #KEYS do
  local at = 4 + (i - 3) * 2
  if redis.call('HEXISTS', KEYS[i], ARGV[at + 1]) == 0 or redis.call('SISMEMBER', KEYS[1], ARGV[at]) == 0 then
    missing[#missing + 1] = i - 2
  else
    redis.call('EXPIRE', KEYS[i], ttl)
  end
end
if ARGV[3] ~= '0' then
  redis.call('EXPIRE', KEYS[2], ttl)
  redis.call('EXPIRE', KEYS[1], ttl)
end
return { missing, redis.call('HGETALL', KEYS[2]), 0, redis.call('SCARD', KEYS[1]) }
