-- The whole of a channel at one moment, and the replication history to which this server belongs.
-- KEYS  1 users of the channel   2 versions by node
-- ARGV  1 what every user's hash begins with   2 '1' to drop users whose hash is gone from the set,
--       '' to list them without seats
-- Returns {history}, {node, version, …}, then for each user {user, field, value, field, value, …}
local function hash(user)
  return ARGV[1] .. string.gsub(user, '[%%:{}%c]', function(c) return string.format('%%%02X', string.byte(c)) end)
end
local info = redis.pcall('INFO', 'replication')
local history = type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or '?'
local found = { { history }, redis.call('HGETALL', KEYS[2]) }
for _, user in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local seats = redis.call('HGETALL', hash(user))
  if #seats == 0 and ARGV[2] == '1' then
    redis.call('SREM', KEYS[1], user)
  else
    table.insert(seats, 1, user)
    found[#found + 1] = seats
  end
end
return found
