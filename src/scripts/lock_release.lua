-- Frees a lock if it is still the owner's: one that expired may be another's by now.
-- KEYS[1] the lock   ARGV[1] the owner's token
-- Returns 1 if it was freed, else 0.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
