-- Stores a value and announces it, so that nobody who hears of it can still read the old one.
-- KEYS[1] the value   ARGV[1] the JSON   ARGV[2] its life in milliseconds   ARGV[3] the topic   ARGV[4] the message
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
