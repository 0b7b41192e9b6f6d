-- Puts and removes seats of one node in one channel, and announces it, with nothing of others in between.
-- A seat that continues one of another node comes after the removal of that one.
-- Safe to repeat, and safe to come late: what is older than what stands here changes nothing.
-- KEYS  1 users of the channel   2 versions by node   3… the user's hash, one for each change
-- ARGV  1 life of keys in seconds   2 node   3 version   4 topic   5 message, or '' for none
--       6 the version that this builds on   7 digest of the part afterwards, then for each change: user, field, value ('' removes)
-- Returns -1, and does nothing, where what this builds on has been lost
local ttl = ARGV[1]
local stands = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or 0)
if stands > tonumber(ARGV[3]) then return 0 end
if stands ~= tonumber(ARGV[6]) and stands ~= tonumber(ARGV[3]) then return -1 end
for i = 3, #KEYS do
  local at = 8 + (i - 3) * 3
  local user, field, value = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if value == '' then
    redis.call('HDEL', KEYS[i], field)
    if redis.call('EXISTS', KEYS[i]) == 0 then redis.call('SREM', KEYS[1], user) end
  else
    redis.call('HSET', KEYS[i], field, value)
    redis.call('EXPIRE', KEYS[i], ttl)
    redis.call('SADD', KEYS[1], user)
  end
end
redis.call('EXPIRE', KEYS[1], ttl)
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3], ARGV[2] .. ':digest', ARGV[7])
redis.call('EXPIRE', KEYS[2], ttl)
if ARGV[5] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return 1
