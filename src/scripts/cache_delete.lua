-- Drops a value, or the note of a load, and announces it.
-- KEYS[1] the value   ARGV[1] the topic   ARGV[2] the message
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
