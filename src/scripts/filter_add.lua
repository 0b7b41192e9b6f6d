-- Sets the bits of a new session in the filter that is complete and in the one being built, and announces them.
-- KEYS[1] the hash that names both   ARGV[1] the topic   ARGV[2] the message   ARGV[3…] the bits
for _, which in ipairs({'current', 'building'}) do
  local number = redis.call('HGET', KEYS[1], which)
  if number then
    local filter = KEYS[1] .. ':' .. number
    if redis.call('EXISTS', filter) == 1 then
      for at = 3, #ARGV do
        redis.call('SETBIT', filter, ARGV[at], 1)
      end
    else
      -- Evicted or expired: a new one with these bits alone would be taken for complete.
      redis.call('HDEL', KEYS[1], which)
    end
  end
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
