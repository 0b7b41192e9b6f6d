-- Takes one node out of a channel, unless its part is newer than the caller knows: then it has come back.
-- A user whose hash is not there is left alone unless it was emptied here: in a cluster it may be on its way.
-- KEYS  1 users of the channel   2 versions by node
-- ARGV  1 node   2 version   3 what every user's hash begins with
-- Returns what was removed: user, field, user, field, …
local node, removed, mine = ARGV[1], {}, ARGV[1] .. ':'
if tonumber(redis.call('HGET', KEYS[2], node) or 0) > tonumber(ARGV[2]) then return removed end
for _, user in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local name = string.gsub(user, '[%%:{}%c]', function(c) return string.format('%%%02X', string.byte(c)) end)
  local key, emptied = ARGV[3] .. name, false
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, #mine) == mine then
      redis.call('HDEL', key, field)
      removed[#removed + 1] = user
      removed[#removed + 1] = field
      emptied = true
    end
  end
  if emptied and redis.call('EXISTS', key) == 0 then redis.call('SREM', KEYS[1], user) end
end
redis.call('HDEL', KEYS[2], node, node .. ':digest')
return removed
