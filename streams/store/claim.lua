-- A worker takes a partition: a new epoch, and what stands there.
-- KEYS: 1 watermark (hash), 2 snapshots (hash)
-- ARGV: 1 topic id, 2 offset at which a partition without a watermark begins ('' = do not begin),
--       3 layout that this worker writes
-- Returns {status, epoch before, epoch, watermark hash as a flat list, usable manifests, newest first}.
-- status: ok, missing, recreated, layout. Nothing is written unless it is ok.
local fields = redis.call('HMGET', KEYS[1], 'w', 'epoch', 'topic_id', 'layout')
local w, epoch, topic, layout = fields[1], fields[2] or '0', fields[3], fields[4]
if not w and ARGV[2] == '' then
  return {'missing', epoch, epoch, {}, {}}
end
if topic and topic ~= '' and ARGV[1] ~= '' and topic ~= ARGV[1] then
  return {'recreated', epoch, epoch, redis.call('HGETALL', KEYS[1]), {}}
end
if layout and tonumber(layout) > tonumber(ARGV[3]) then
  return {'layout', epoch, epoch, redis.call('HGETALL', KEYS[1]), {}}
end
local fresh = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
if not w then
  w = ARGV[2]
  redis.call('HSET', KEYS[1], 'w', w, 'since', w, 'layout', ARGV[3])
end
if ARGV[1] ~= '' then
  redis.call('HSET', KEYS[1], 'topic_id', ARGV[1])
end
-- A snapshot beyond the watermark holds rows that were never recorded: it is not usable.
local usable = {}
local published = redis.call('HMGET', KEYS[2], 'newer', 'a', 'a_offset', 'b', 'b_offset')
local slots = {a = {published[2], published[3]}, b = {published[4], published[5]}}
local order = published[1] == 'b' and {'b', 'a'} or {'a', 'b'}
for _, name in ipairs(order) do
  local manifest, offset = slots[name][1], slots[name][2]
  if manifest and tonumber(offset) <= tonumber(w) then
    usable[#usable + 1] = manifest
  end
end
return {'ok', epoch, tostring(fresh), redis.call('HGETALL', KEYS[1]), usable}
