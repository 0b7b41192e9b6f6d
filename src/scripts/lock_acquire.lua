-- Takes a free lock, or renews one's own: sent twice, the second finds what the first did.
-- KEYS[1] the lock   KEYS[2] its fencing number   ARGV[1] the owner's token   ARGV[2] its life and ARGV[3] the
-- number's, in milliseconds
-- Returns the fencing number if the lock is the owner's, else 0.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  local now = redis.call('TIME')
  local number = redis.call('INCR', KEYS[2])
  -- At least the time, so that it grows on where the last number was lost.
  local least = now[1] * 1000 + math.floor(now[2] / 1000)
  if number < least then
    number = least
    redis.call('SET', KEYS[2], string.format('%d', number))
  end
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
  return number
end
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return tonumber(redis.call('GET', KEYS[2]) or 1)
end
return 0
