-- Takes a free lock, or renews one's own: sent twice, the second still answers 1.
-- KEYS[1] the lock   ARGV[1] the owner's token   ARGV[2] its life in milliseconds
-- Returns 1 if the lock is the owner's, else 0.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return 1
end
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
