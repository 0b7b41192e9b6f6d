-- Begins a filter: from now on whoever makes a session sets its bits there too.
-- KEYS[1] the hash that names the filters   ARGV[1] its bits   ARGV[2] its life without progress, in seconds
-- Returns its number.
local number = redis.call('HINCRBY', KEYS[1], 'next', 1)
local filter = KEYS[1] .. ':' .. number
redis.call('SETBIT', filter, ARGV[1] - 1, 0)
redis.call('EXPIRE', filter, ARGV[2])
redis.call('HSET', KEYS[1], 'building', number)
return number
