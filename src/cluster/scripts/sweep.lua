-- Takes a user whose hash is gone out of the set of users, in a cluster: there a hash that is not found may
-- be on its way with its slot, and only a script that names both keys is not carried out meanwhile.
-- KEYS  1 users of the channel   2 the user's hash
-- ARGV  1 user
if redis.call('EXISTS', KEYS[2]) == 0 then
  return redis.call('SREM', KEYS[1], ARGV[1])
end
return 0
