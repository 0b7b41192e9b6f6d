-- Ends a session and then announces it, so that nobody who hears of it can still read it.
-- KEYS[1] the session   ARGV[1] the topic   ARGV[2] the token
-- Returns 1 if there was one, else 0.
local deleted = redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return deleted
