-- Trims a public stream to its newest `keep` entries, but never beyond what its slowest consumer group has read and
-- acknowledged. Above `cap` entries it trims all the same, to a tenth below it, so that this is rare; a group that loses
-- entries so finds an entry that says it.
-- KEYS: 1 stream
-- ARGV: 1 keep, 2 cap, 3 most entries to look at in one call, 4 field,
--       5 the entry, JSON, in which @GROUP@, @FROM@ and @FIRST@ are replaced
-- Returns {number trimmed, groups that lost entries ...}.
local keep, cap, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function before(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  if a_ms ~= b_ms then
    return tonumber(a_ms) < tonumber(b_ms)
  end
  return tonumber(a_seq) < tonumber(b_seq)
end

local length = redis.call('XLEN', KEYS[1])
if length <= keep then
  return {0}
end

-- The first entry that each group still needs: its oldest pending one, else the next after what it was given.
local groups = {}
for _, pairs_of_group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local info = {}
  for i = 1, #pairs_of_group, 2 do
    info[pairs_of_group[i]] = pairs_of_group[i + 1]
  end
  local pending = redis.call('XPENDING', KEYS[1], info['name'])
  local needs = pending[1] > 0 and pending[2] or nil
  if not needs then
    local rest = redis.call('XRANGE', KEYS[1], '(' .. info['last-delivered-id'], '+', 'COUNT', 1)
    needs = rest[1] and rest[1][1]
  end
  if needs then
    table.insert(groups, {name = info['name'], needs = needs})
  end
end

local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', math.min(length - keep, most) + 1)
local first = oldest[#oldest][1]
for _, group in ipairs(groups) do
  if before(group.needs, first) then
    first = group.needs
  end
end
local trimmed = redis.call('XTRIM', KEYS[1], 'MINID', first)
local answer = {trimmed}
if length - trimmed > cap then
  answer[1] = trimmed + redis.call('XTRIM', KEYS[1], 'MAXLEN', cap - math.floor(cap / 10))
  first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1]
  for _, group in ipairs(groups) do
    if before(group.needs, first) then
      local values = {GROUP = string.sub(cjson.encode(group.name), 2, -2), FROM = group.needs, FIRST = first}
      redis.call('XADD', KEYS[1], '*', ARGV[4], (string.gsub(ARGV[5], '@(%u+)@', values)))
      table.insert(answer, group.name)
    end
  end
end
return answer
