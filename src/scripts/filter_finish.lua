-- Makes the filter being built the complete one, if it is still that of the caller, and announces it.
-- KEYS[1] the hash that names the filters   ARGV[1] its number   ARGV[2] the topic
-- Returns 1 if it is complete now, else 0.
local filter = KEYS[1] .. ':' .. ARGV[1]
if redis.call('HGET', KEYS[1], 'building') ~= ARGV[1] or redis.call('EXISTS', filter) == 0 then
  return 0
end
redis.call('PERSIST', filter)
local old = redis.call('HGET', KEYS[1], 'current')
redis.call('HSET', KEYS[1], 'current', ARGV[1])
redis.call('HDEL', KEYS[1], 'building')
if old then
  redis.call('DEL', KEYS[1] .. ':' .. old)
end
redis.call('PUBLISH', ARGV[2], 'built')
return 1
