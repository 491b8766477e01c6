-- Writes of the active prober; nothing happens when another prober holds the lease.
-- KEYS: 1 fence, 2 plans, 3 log, 4 results
-- ARGV: 1 token, 2 'plan' or 'finish', 3 campaign, 4 plan or outcome (JSON), 5 length of the log,
--       then attack and summary (JSON), alternating
-- Returns 1 applied, 0 finished before, -1 fenced.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
if ARGV[2] == 'plan' then
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
  return 1
end
if redis.call('HDEL', KEYS[2], ARGV[3]) == 0 then
  return 0
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'm', ARGV[4])
for place = 6, #ARGV, 2 do
  redis.call('HSET', KEYS[4], ARGV[place], ARGV[place + 1])
end
return 1
