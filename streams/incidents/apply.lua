-- Writes changed incidents, all of them or none. A compare-and-set on: the fencing token, how far the correlator has
-- read the partition, the version of every incident, and which incident of each group is open.
-- KEYS: 1 fence, 2 progress, 3 openings, 4 incidents, 5 open map, 6 log, 7 alerts,
--       then per write: incident, evidence, recent; then one key per alias.
-- ARGV: 1 the plan (MessagePack of streams.incidents.ledger.Plan), 2 ttl of evidence, 3 ttl of recent and aliases (s)
-- Returns {'ok'}, {'fenced'}, {'progress', stored id}, or {'changed', incident id}.
local FIXED, PER_WRITE = 7, 3
local plan = cmsgpack.unpack(ARGV[1])
local evidence_ttl, recent_ttl = ARGV[2], ARGV[3]

if plan.token ~= '' and redis.call('GET', KEYS[1]) ~= plan.token then
  return {'fenced'}
end
if plan.place ~= '' then
  local stored = redis.call('HGET', KEYS[2], plan.place) or ''
  if stored ~= plan.base then
    return {'progress', stored}
  end
end
for i, write in ipairs(plan.writes) do
  local key = KEYS[FIXED + PER_WRITE * (i - 1) + 1]
  local version = tonumber(redis.call('HGET', key, 'version') or '0')
  local open = redis.call('HGET', KEYS[5], write.group) or ''
  if version ~= write.base or open ~= write.was_open then
    return {'changed', write.id}
  end
end

-- Keeps the first `firsts` entries, the first page signal and the newest ones.
local function keep_evidence(incident, list, write)
  local page_at = tonumber(redis.call('HGET', incident, 'page_at') or '-1')
  for _, entry in ipairs(write.evidence) do
    local length = redis.call('RPUSH', list, entry.body)
    if entry.page == 1 and page_at < 0 then
      page_at = length - 1
    end
    while length > write.kept do
      local place = write.firsts
      if page_at == place then
        place = place + 1
      elseif page_at > place then
        page_at = page_at - 1
      end
      redis.call('LSET', list, place, '')
      redis.call('LREM', list, 1, '')
      length = length - 1
    end
  end
  redis.call('HSET', incident, 'page_at', page_at)
  redis.call('EXPIRE', list, evidence_ttl)
end

for i, write in ipairs(plan.writes) do
  local at = FIXED + PER_WRITE * (i - 1)
  local incident, evidence, recent = KEYS[at + 1], KEYS[at + 2], KEYS[at + 3]
  redis.call('HSET', incident, 'm', write.body, 'version', write.version, 'group', write.group)
  redis.call('ZADD', KEYS[4], write.seen, write.id)
  if write.open == 1 then
    redis.call('HSET', KEYS[5], write.group, write.id)
  elseif write.was_open == write.id then
    redis.call('HDEL', KEYS[5], write.group)
  end
  redis.call('SET', recent, write.id, 'EX', recent_ttl)
  if #write.evidence > 0 then
    keep_evidence(incident, evidence, write)
  end
  for _, entry in ipairs(write.log) do
    redis.call('XADD', KEYS[6], '*', 'm', entry)
  end
  for _, entry in ipairs(write.alerts) do
    redis.call('XADD', KEYS[7], '*', 'm', entry)
  end
end
local aliases_at = FIXED + PER_WRITE * #plan.writes
for i, group in ipairs(plan.aliases) do
  redis.call('SET', KEYS[aliases_at + i], group, 'EX', recent_ttl)
end
if plan.place ~= '' then
  redis.call('HSET', KEYS[2], plan.place, plan.upto)
  if plan.openings ~= '' then
    redis.call('HSET', KEYS[3], plan.place, plan.openings)
  end
end
return {'ok'}
