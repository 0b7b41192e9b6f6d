-- Makes a lease last, if it is that of the same contact: a renewal that comes late, from a connection that
-- was given up, must not say of a later contact what was true of its own. The lease names the replication
-- histories in which was written: of a server that was restored or promoted since it is not believed.
-- KEYS  1 the lease
-- ARGV  1 contact   2 `writing` or `settled`   3 life in milliseconds   4 histories, joined by commas
-- Returns 1, or 0 where there is no such lease
local lease = redis.call('GET', KEYS[1])
if not lease or string.match(lease, '^%a+ (%d+)') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[1] .. ' ' .. ARGV[4], 'PX', ARGV[3])
return 1
