-- Counts one call in a fixed window that begins with the first.
-- KEYS[1] the counter   ARGV[1] the window in milliseconds
-- Returns {calls in this window, milliseconds until it ends}.
-- Sent twice, it counts twice: a limit errs towards refusing.
local count = redis.call('INCR', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  -- The first call, or a counter that someone left without an end: it would refuse for ever.
  left = tonumber(ARGV[1])
  redis.call('PEXPIRE', KEYS[1], left)
end
return {count, left}
