-- Makes a lock that is still the owner's last longer: one that has ended stays ended.
-- KEYS[1] the lock   ARGV[1] the owner's token   ARGV[2] its life in milliseconds
-- Returns 1 if it is the owner's, else 0.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
