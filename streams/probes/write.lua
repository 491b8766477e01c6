-- Writes of the active prober; nothing happens when another prober holds the lease.
-- KEYS: 1 fence, 2 plans, 3 log, 4 results, 5 breakdown, 6 requests
-- ARGV: 1 token, 2 'plan' or 'finish', 3 campaign, 4 plan or outcome (JSON), then
--       of a plan: 5 id of the request that it answers ('' = none), 6 what is left of the request (JSON, '' = nothing)
--       of a finish: 5 length of the log, 6 number of summaries by attack, then attack and summary (JSON), alternating,
--       then the fields of the whole breakdown and their summaries, alternating
-- Returns 1 applied, 0 finished before or no such request, -1 fenced.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
if ARGV[2] == 'plan' then
  if ARGV[5] ~= '' then
    if redis.call('HEXISTS', KEYS[6], ARGV[5]) == 0 then
      return 0
    end
    if ARGV[6] == '' then
      redis.call('HDEL', KEYS[6], ARGV[5])
    else
      redis.call('HSET', KEYS[6], ARGV[5], ARGV[6])
    end
  end
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
  return 1
end
if redis.call('HDEL', KEYS[2], ARGV[3]) == 0 then
  return 0
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'm', ARGV[4])
local last = 6 + 2 * tonumber(ARGV[6])
for place = 7, last, 2 do
  redis.call('HSET', KEYS[4], ARGV[place], ARGV[place + 1])
end
redis.call('DEL', KEYS[5])
for place = last + 1, #ARGV, 2 do
  redis.call('HSET', KEYS[5], ARGV[place], ARGV[place + 1])
end
return 1
