-- Writes threads of notices, all of them or none: a compare-and-set on the fencing token and on what each thread was.
-- Where it takes alerts in, the group's place in their stream moves in the same call, so each is taken in once.
-- KEYS: 1 fence, 2 alerts, 3 places, 4 totals, 5 health; then per write: notices, due, dead
-- ARGV: 1 the plan (MessagePack of streams.notify.outbox.Plan), 2 consumer group, 3 most dead letters, about
-- Returns {'ok'}, {'fenced'}, or {'changed', key}.
local FIXED, PER_WRITE = 5, 3
local plan = cmsgpack.unpack(ARGV[1])

if redis.call('GET', KEYS[1]) ~= plan.token then
  return {'fenced'}
end
for i, write in ipairs(plan.writes) do
  local stored = redis.call('HGET', KEYS[FIXED + PER_WRITE * (i - 1) + 1], write.key) or ''
  if stored ~= write.base then
    return {'changed', write.key}
  end
end
for i, write in ipairs(plan.writes) do
  local at = FIXED + PER_WRITE * (i - 1)
  local notices, due, dead = KEYS[at + 1], KEYS[at + 2], KEYS[at + 3]
  if write.body == '' then
    redis.call('HDEL', notices, write.key)
  else
    redis.call('HSET', notices, write.key, write.body)
  end
  if write.due == '' then
    redis.call('ZREM', due, write.key)
  else
    redis.call('ZADD', due, write.due, write.key)
  end
  for _, letter in ipairs(write.dead) do
    redis.call('XADD', dead, 'MAXLEN', '~', ARGV[3], '*', 'm', letter[1], 'reason', letter[2])
  end
end
for _, place in ipairs(plan.places) do
  if place[2] == '' then
    redis.call('HDEL', KEYS[3], place[1])
  else
    redis.call('HSET', KEYS[3], place[1], place[2])
  end
end
for _, count in ipairs(plan.counts) do
  redis.call('HINCRBY', KEYS[4], count[1], count[2])
end
for _, health in ipairs(plan.health) do
  redis.call('HSET', KEYS[5], health[1], health[2])
end
if plan.upto ~= '' then
  redis.call('XGROUP', 'SETID', KEYS[2], ARGV[2], plan.upto)
end
return {'ok'}
