-- Refreshes one node's seats in a channel and says what is missing of them.
-- KEYS  1 users of the channel   2 versions by node   3… the user's hash, one for each seat
-- ARGV  1 life of keys in seconds   2 node   3 version, or '' where the node has never had a part
--       then for each seat: user, field
-- Returns {numbers of the seats that are missing, from 1}, {node, version, node, version, …}
local ttl, missing = ARGV[1], {}
for i = 3, #KEYS do
  local at = 4 + (i - 3) * 2
  if redis.call('HEXISTS', KEYS[i], ARGV[at + 1]) == 0 or redis.call('SISMEMBER', KEYS[1], ARGV[at]) == 0 then
    missing[#missing + 1] = i - 2
  else
    redis.call('EXPIRE', KEYS[i], ttl)
  end
end
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
  redis.call('EXPIRE', KEYS[2], ttl)
  redis.call('EXPIRE', KEYS[1], ttl)
end
return { missing, redis.call('HGETALL', KEYS[2]) }
