-- Trims a public stream to its newest `keep` entries, but never beyond what its slowest consumer group has read and
-- acknowledged; above `cap` entries it trims all the same, and then leaves an entry that says so.
-- KEYS: 1 stream
-- ARGV: 1 keep, 2 cap, 3 most entries to look at in one call, 4 field, 5 the entry, with @GROUP@, @READ@ and @FIRST@ in it
-- Returns {number trimmed, groups that lost entries ...}.
local keep, cap, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function before(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

-- The id of the first entry that stays when the oldest `count` entries go; only so far as one call may look.
local function first_after(count)
  local entries = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', math.min(count, most) + 1)
  return entries[#entries][1]
end

local length = redis.call('XLEN', KEYS[1])
if length <= keep then
  return {0}
end
local wanted = first_after(length - keep)
local safe = wanted
local groups = {}
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #info, 2 do
    group[info[i]] = info[i + 1]
  end
  local done = group['last-delivered-id']
  local first = first_after(0)
  -- Entries up to `done` were delivered; the oldest one that is still pending must stay.
  local pending = redis.call('XPENDING', KEYS[1], group['name'])
  local floor = (pending[1] > 0) and pending[2] or nil
  table.insert(groups, {name = group['name'], read = done, floor = floor})
  local need = floor
  if not need then
    -- Everything up to `done` is acknowledged: the first entry after it must stay.
    local rest = redis.call('XRANGE', KEYS[1], '(' .. done, '+', 'COUNT', 1)
    need = rest[1] and rest[1][1] or wanted
  end
  if before(need, safe) then
    safe = need
  end
end
local trimmed = redis.call('XTRIM', KEYS[1], 'MINID', safe)
local answer = {trimmed}
length = length - trimmed
if length > cap then
  local forced = first_after(length - cap)
  answer[1] = trimmed + redis.call('XTRIM', KEYS[1], 'MINID', forced)
  for _, group in ipairs(groups) do
    local reached = group.floor or group.read
    if before(reached, forced) then
      local entry = ARGV[5]
      for mark, value in pairs({GROUP = group.name, READ = reached, FIRST = forced}) do
        entry = string.gsub(entry, '@' .. mark .. '@', (string.gsub(value, '%%', '%%%%')))
      end
      redis.call('XADD', KEYS[1], '*', ARGV[4], entry)
      table.insert(answer, group.name)
    end
  end
end
return answer
