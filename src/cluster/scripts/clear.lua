-- Takes one node out of a channel, unless its part is newer than the caller knows: then it has come back.
-- In a cluster (the channel's name in braces) a hash that is not here may be on its way with its slot, and
-- hold what must go: then nothing is done, and the error is INCOMPLETE.
-- KEYS  1 users of the channel   2 versions by node
-- ARGV  1 node   2 version   3 what every user's hash begins with
-- Returns what was removed: user, field, user, field, …
local node, removed, mine = ARGV[1], {}, ARGV[1] .. ':'
if tonumber(redis.call('HGET', KEYS[2], node) or 0) > tonumber(ARGV[2]) then return removed end
local function hash(user)
  return ARGV[3] .. string.gsub(user, '[%%:{}%c]', function(c) return string.format('%%%02X', string.byte(c)) end)
end
local users = redis.call('SMEMBERS', KEYS[1])
if string.find(ARGV[3], '{', 1, true) then
  for _, user in ipairs(users) do
    if redis.call('EXISTS', hash(user)) == 0 then return redis.error_reply('INCOMPLETE a hash is not here') end
  end
end
for _, user in ipairs(users) do
  local key = hash(user)
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, #mine) == mine then
      redis.call('HDEL', key, field)
      removed[#removed + 1] = user
      removed[#removed + 1] = field
    end
  end
  if redis.call('EXISTS', key) == 0 then redis.call('SREM', KEYS[1], user) end
end
redis.call('HDEL', KEYS[2], node, node .. ':digest')
return removed
