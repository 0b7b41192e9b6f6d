-- Makes a lease last, if it is that of the same contact: a renewal that comes late, from a connection that
-- was given up, must not say of a later contact what was true of its own. The lease names the server's
-- replication history: what a server says that was restored or promoted since is not to be believed.
-- KEYS  1 the lease
-- ARGV  1 contact   2 `writing` or `settled`   3 life in milliseconds
-- Returns 1, or 0 where there is no such lease
local lease = redis.call('GET', KEYS[1])
if not lease or string.match(lease, '^%a+ (%d+)') ~= ARGV[1] then return 0 end
local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[1] .. ' ' .. history, 'PX', ARGV[3])
return 1
