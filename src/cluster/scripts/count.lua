-- How many users and connections a channel has, counted from what is there, never from a counter.
-- KEYS  1 users of the channel
-- ARGV  1 what every user's hash begins with
local online, connections = 0, 0
for _, user in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local key = string.gsub(user, '[%%:{}%c]', function(c) return string.format('%%%02X', string.byte(c)) end)
  local seats = redis.call('HLEN', ARGV[1] .. key)
  if seats > 0 then
    online = online + 1
    connections = connections + seats
  end
end
return { online, connections }
