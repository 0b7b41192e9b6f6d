-- Makes one node's part of a channel exactly what is listed: what else of it was there goes. What is older
-- than what stands here changes nothing. A user whose hash is not there is left alone unless it was emptied
-- here: in a cluster it may be on its way.
-- KEYS  1 users of the channel   2 versions by node   3… the hashes that are written to
-- ARGV  1 life of keys in seconds   2 node   3 version
--       4 topic   5 message, or '' for none   6 what every user's hash begins with
--       7 digest, then for each seat: user, field, value
-- Returns how many seats stood there that should not
local ttl, node, prefix = ARGV[1], ARGV[2], ARGV[6]
if tonumber(redis.call('HGET', KEYS[2], node) or 0) > tonumber(ARGV[3]) then return 0 end
local function hash(user)
  return prefix .. string.gsub(user, '[%%:{}%c]', function(c) return string.format('%%%02X', string.byte(c)) end)
end
local listed, mine, removed = {}, node .. ':', 0
for at = 8, #ARGV, 3 do listed[ARGV[at + 1]] = true end
for _, user in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local key, emptied = hash(user), false
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, #mine) == mine and not listed[field] then
      redis.call('HDEL', key, field)
      emptied, removed = true, removed + 1
    end
  end
  if emptied and redis.call('EXISTS', key) == 0 then redis.call('SREM', KEYS[1], user) end
end
for at = 8, #ARGV, 3 do
  local key = hash(ARGV[at])
  redis.call('HSET', key, ARGV[at + 1], ARGV[at + 2])
  redis.call('EXPIRE', key, ttl)
  redis.call('SADD', KEYS[1], ARGV[at])
end
redis.call('EXPIRE', KEYS[1], ttl)
redis.call('HSET', KEYS[2], node, ARGV[3], node .. ':digest', ARGV[7])
redis.call('EXPIRE', KEYS[2], ttl)
if ARGV[5] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return removed
