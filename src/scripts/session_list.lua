-- Notes in the list of a user's sessions when one of them ends, and drops those that have ended.
-- KEYS[1] the list   ARGV[1] the token   ARGV[2] now and ARGV[3] the session's life, both in milliseconds
local now, life = tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZADD', KEYS[1], now + life, ARGV[1])
-- Clocks of nodes differ: what ended a minute ago has ended on all.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60000)
if redis.call('PTTL', KEYS[1]) < life then
  redis.call('PEXPIRE', KEYS[1], life)
end
return 1
