-- Everything that one batch of one partition did, in one step: a compare-and-set on the watermark.
-- KEYS: 1 watermark (hash), 2 totals (hash), 3 histograms (hash), 4 signals (stream), 5 probes (stream),
--       6 probe uses (hash), 7... counters of periods (hashes), in the order of the plan's `periods`
-- ARGV: 1 offset that the batch started from, 2 offset after it, 3 epoch, 4 the plan (MessagePack),
--       5 verdicts that the probes stream keeps, about, 6... detector, packed histogram, ...
-- The plan: {mark, totals, periods, signals, verdicts, uses, expired}
--   mark: fields of the watermark hash; totals: name, count, ...; periods: {seconds to live, {name, count, ...}};
--   signals, verdicts: entry id, JSON, ...; uses: probe id, coordinates, ...; expired: probe id, ...
-- Returns {status, watermark, epoch}. status: ok; fenced (another worker took the partition); moved (the watermark is
-- not where the batch started). Unless it is ok, nothing is written.
local stored = redis.call('HMGET', KEYS[1], 'w', 'epoch')
if stored[2] ~= ARGV[3] then
  return {'fenced', stored[1] or '', stored[2] or ''}
end
if stored[1] ~= ARGV[1] then
  return {'moved', stored[1] or '', stored[2]}
end

local mark, totals, periods, signals, verdicts, uses, expired = unpack(cmsgpack.unpack(ARGV[4]))

local function count(key, counts)
  for place = 1, #counts, 2 do
    redis.call('HINCRBY', key, counts[place], counts[place + 1])
  end
end

local function append(key, entries, most)
  for place = 1, #entries, 2 do
    if most then
      redis.call('XADD', key, 'MAXLEN', '~', most, entries[place], 'm', entries[place + 1])
    else
      redis.call('XADD', key, entries[place], 'm', entries[place + 1])
    end
  end
end

append(KEYS[4], signals)
append(KEYS[5], verdicts, ARGV[5])
count(KEYS[2], totals)
for place, period in ipairs(periods) do
  count(KEYS[6 + place], period[2])
  redis.call('EXPIRE', KEYS[6 + place], period[1])
end
for place = 6, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[place], ARGV[place + 1])
end
for place = 1, #uses, 2 do
  redis.call('HSET', KEYS[6], uses[place], uses[place + 1])
end
for _, identity in ipairs(expired) do
  redis.call('HDEL', KEYS[6], identity)
end
redis.call('HSET', KEYS[1], 'w', ARGV[2], unpack(mark))
return {'ok', ARGV[2], stored[2]}
