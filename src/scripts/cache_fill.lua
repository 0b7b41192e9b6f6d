-- Stores what was loaded, if nothing was changed or dropped since the load began.
-- KEYS[1] the value   ARGV[1] the note that the load left   ARGV[2] the value   ARGV[3] its life in milliseconds
-- Returns 1 if it is stored now, else 0.
local found = redis.call('GET', KEYS[1])
if found ~= ARGV[1] then
  -- Sent twice, the second finds what the first stored.
  return found == ARGV[2] and 1 or 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
