-- Publishes a snapshot whose chunks are written, over the older of the two; forgets chunks that only that one had.
-- KEYS: 1 watermark (hash), 2 snapshots (hash), 3... chunks of the new snapshot, then chunks to forget
-- ARGV: 1 epoch, 2 the snapshot's offset, 3 the manifest, 4 number of the new snapshot's chunks
-- Returns {status, watermark}. status: ok; fenced; beyond (its offset is not recorded yet); older (one at this offset
-- or later is there); incomplete (a chunk is missing). Unless it is ok, nothing is written.
local stored = redis.call('HMGET', KEYS[1], 'w', 'epoch')
local w = stored[1] or ''
if stored[2] ~= ARGV[1] then
  return {'fenced', w}
end
local offset = tonumber(ARGV[2])
if w == '' or offset > tonumber(w) then
  return {'beyond', w}
end
local published = redis.call('HMGET', KEYS[2], 'newer', 'a_offset', 'b_offset')
local newer = published[1]
local newest = newer == 'a' and published[2] or published[3]
if newer and tonumber(newest) >= offset then
  return {'older', w}
end
local chunks = tonumber(ARGV[4])
for place = 3, 2 + chunks do
  if redis.call('EXISTS', KEYS[place]) == 0 then
    return {'incomplete', w}
  end
end
for place = 3, 2 + chunks do
  redis.call('PERSIST', KEYS[place])
end
for place = 3 + chunks, #KEYS do
  redis.call('DEL', KEYS[place])
end
local slot = newer == 'a' and 'b' or 'a'
redis.call('HSET', KEYS[2], slot, ARGV[3], slot .. '_offset', ARGV[2], 'newer', slot)
return {'ok', w}
