-- Adds what one node has counted of a channel on one day.
-- KEYS[1] its counts, a hash   KEYS[2] its users, a HyperLogLog
-- ARGV[1] the life of both in seconds   ARGV[2] joins   ARGV[3] leaves   ARGV[4] the most at once   ARGV[5…] users
-- Sent twice, joins and leaves count twice.
if ARGV[2] ~= '0' then redis.call('HINCRBY', KEYS[1], 'joins', ARGV[2]) end
if ARGV[3] ~= '0' then redis.call('HINCRBY', KEYS[1], 'leaves', ARGV[3]) end
if tonumber(ARGV[4]) > tonumber(redis.call('HGET', KEYS[1], 'peak') or 0) then
  redis.call('HSET', KEYS[1], 'peak', ARGV[4])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
if #ARGV > 4 then
  for from = 5, #ARGV, 1000 do
    redis.call('PFADD', KEYS[2], unpack(ARGV, from, math.min(from + 999, #ARGV)))
  end
  redis.call('EXPIRE', KEYS[2], ARGV[1])
end
return 1
