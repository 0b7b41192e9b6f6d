-- Makes one node's part of a channel exactly what is listed: what else of it was there goes. What is older
-- than what stands here changes nothing. In a cluster (the channel's name in braces) a hash that is not here
-- may be on its way with its slot, and hold what must go: then nothing is done, and the error is INCOMPLETE.
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
local users = redis.call('SMEMBERS', KEYS[1])
if string.find(prefix, '{', 1, true) then
  for _, user in ipairs(users) do
    if redis.call('EXISTS', hash(user)) == 0 then return redis.error_reply('INCOMPLETE a hash is not here') end
  end
end
local listed, mine, removed = {}, node .. ':', 0
for at = 8, #ARGV, 3 do listed[ARGV[at + 1]] = true end
for _, user in ipairs(users) do
  local key = hash(user)
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, #mine) == mine and not listed[field] then
      redis.call('HDEL', key, field)
      removed = removed + 1
    end
  end
  if redis.call('EXISTS', key) == 0 then redis.call('SREM', KEYS[1], user) end
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
