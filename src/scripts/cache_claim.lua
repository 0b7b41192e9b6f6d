-- Reads a value, or leaves a note that it is being loaded.
-- KEYS[1] the value   ARGV[1] the note   ARGV[2] its life in milliseconds
-- Returns what stands there: a value, another's note, or false where this note stands now.
-- Sent twice, the second finds its own note: that is as good as none.
local found = redis.call('GET', KEYS[1])
if found == ARGV[1] then
  return false
end
if found and string.sub(found, 1, 8) ~= 'loading:' then
  return found
end
-- The newest note counts: of two loads the later one has read the newer value.
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
