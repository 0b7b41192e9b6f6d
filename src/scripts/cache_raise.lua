-- Raises the number of a namespace and announces it: all its values are dropped.
-- KEYS[1] the number; none stands for 1   ARGV[1] the topic   ARGV[2] the message, a JSON object without the number
-- Returns the number. Sent twice, it is raised twice, which drops no more than once would.
local number = redis.call('INCR', KEYS[1])
if number == 1 then
  number = redis.call('INCR', KEYS[1])
end
redis.call('PUBLISH', ARGV[1], string.sub(ARGV[2], 1, -2) .. ',"version":' .. number .. '}')
return number
