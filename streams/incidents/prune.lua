-- Forgets incidents that were resolved and have been quiet for long.
-- KEYS: 1 fence, 2 incidents, 3 open map, then per candidate: incident, evidence
-- ARGV: 1 token, then per candidate: id, version
-- Returns the number forgotten, or -1 when the lease is lost.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
local forgotten = 0
for i = 1, (#ARGV - 1) / 2 do
  local id, version = ARGV[2 * i], ARGV[2 * i + 1]
  local incident, evidence = KEYS[2 + 2 * i], KEYS[3 + 2 * i]
  local stored = redis.call('HMGET', incident, 'version', 'group')
  if stored[1] == version and redis.call('HGET', KEYS[3], stored[2]) ~= id then
    redis.call('DEL', incident, evidence)
    redis.call('ZREM', KEYS[2], id)
    forgotten = forgotten + 1
  end
end
return forgotten
